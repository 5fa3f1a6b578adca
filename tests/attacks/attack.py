"""What an attack is, and the table of all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Made = bytes | Path | None
Maker = Callable[[Path], Made]


@dataclass(frozen=True)
class Must:
    """What has to happen. `refused`: an error with this code when opened, read, verified,
    restored, or at the step named; the code "any" is any code. `told`: the doctor's report has
    the code. `inert`: it opens, as data."""

    way: str
    code: str = ""
    at: str = ""
    why: str = ""  # text that the finding's explanation holds

    def __str__(self) -> str:
        if self.way == "inert":
            return "opens as inert data"
        acts = {"build": "built", "restore": "restored", "run save": "saved into"}
        where = f" when {acts[self.at]}" if self.at in acts else ""
        code = "" if self.code == "any" else f": `{self.code}`"
        return f"{self.way}{where}{code}"


def refused(code: str, at: str = "", why: str = "") -> Must:
    return Must("refused", code, at, why)


def told(code: str) -> Must:
    return Must("told", code)


INERT = Must("inert")


@dataclass(frozen=True)
class Attack:
    """`make` gets an empty folder and writes into it; bytes that it returns become `file` there,
    a path that it returns is what is opened."""

    name: str
    family: str
    tries: str
    must: Must
    make: Maker
    seen: str = "ours"
    file: str = "model.pt"
    follows: bool = False  # a link out of the folder is read through, and may be


FAMILIES: dict[str, dict[str, Attack]] = {}


def add(attack: Attack) -> None:
    family = FAMILIES.setdefault(attack.family, {})
    assert attack.name not in family, f"two attacks are called {attack.family}: {attack.name}"
    family[attack.name] = attack


def attack(
    family: str,
    name: str,
    tries: str,
    must: Must,
    seen: str = "ours",
    file: str = "model.pt",
    follows: bool = False,
) -> Callable[[Maker], Maker]:
    """Registers the function that makes an attack."""

    def register(make: Maker) -> Maker:
        add(Attack(name, family, tries, must, make, seen, file, follows))
        return make

    return register


def make(attack: Attack, folder: Path) -> Path:
    """Write the attack into an empty folder. The path that is to be opened."""
    made: Any = attack.make(folder)
    if isinstance(made, bytes):
        (folder / attack.file).write_bytes(made)
        return folder / attack.file
    return made if isinstance(made, Path) else folder / attack.file


class CannotMake(Exception):
    """This system does not let the attack be made: no root, no such kind of file."""
