"""Every attack through everything that a person may do with a file; see `README.md`."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attacks import arena, families, readme
from attacks.attack import FAMILIES

assert families.__all__
HERE = Path(__file__).parent
SRC = HERE.parents[1] / "src"


class Arena:
    """The process that forks a child for each attack."""

    def __init__(self, place: Path) -> None:
        self.canary = place / "canary"
        paths = [str(SRC), str(HERE.parent), str(HERE / "bait")]
        budgets = {f"HOLDTRUE_{name.upper()}": str(n) for name, n in arena.BUDGETS.items()}
        (place / "ring").mkdir()
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "attacks.arena", str(place / "ring")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **budgets, "PYTHONPATH": os.pathsep.join(paths),
                 "HOLDTRUE_CANARY": str(self.canary), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self._read() == "ready", "the arena did not start"

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().rstrip("\n")

    def ask(self, family: str, name: str, thorough: bool) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([family, name, thorough]) + "\n")
        self._process.stdin.flush()
        return dict(json.loads(self._read()))

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    made = Arena(tmp_path_factory.mktemp("attacks"))
    yield made
    made.close()


def said(result: dict[str, Any], steps: tuple[str, ...]) -> set[str]:
    return {code for step in steps for code in result["codes"].get(step, ())}


def misses(family: str, name: str, result: dict[str, Any]) -> list[str]:
    """What is other than it must be."""
    attack, must = FAMILIES[family][name], FAMILIES[family][name].must
    if "codes" not in result:
        return [f"the child ended: {result}"]
    wrong = [f"it was run: {line}" for line in ["the canary is there"] if result["ran"]]
    seen = [line for line in result["seen"] if not (attack.follows and _reads(line))]
    wrong += [f"it reached out: {line}" for line in seen]
    wrong += [f"changed: {line}" for line in result["changed"]]
    wrong += [f"no finding but {line}" for line in result["bare"]]
    if result["grown"] > arena.MEMORY:
        wrong.append(f"{result['grown'] >> 20} MiB of memory")
    steps = (must.at,) if must.at else ("open", "read", "values", "verify", "restore")
    refusals = said(result, steps)
    opens = "open" in result["done"]
    if must.way == "inert":
        if not opens:
            wrong.append(f"it does not open: {sorted(refusals)}")
    elif must.way == "told":
        told = said(result, ("doctor", "doctor deep", "open"))
        if must.code not in told:
            wrong.append(f"the doctor tells {sorted(told)}")
    elif must.code == "any" and refusals:
        pass
    elif must.code not in refusals:
        wrong.append(f"the refusal is {sorted(refusals)}")
    elif must.why and not any(must.why in text for key, text in result["whys"].items()
                              if key.endswith("/" + must.code)):  # fmt: skip
        wrong.append(f"the explanation is {result['whys']}")
    return [f"{attack.family}: {attack.name}: {line}" for line in wrong]


def _reads(line: str) -> bool:
    return line.endswith(" for reading") or line.startswith(("os.listdir ", "os.scandir "))


@pytest.mark.parametrize("family", FAMILIES)
def test_family(family: str, ring: Arena, figure: Any) -> None:
    """What looks into a file: open, read, verify, diagnose, restore, build."""
    face(family, ring, False, figure)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_family_thoroughly(family: str, ring: Arena, figure: Any) -> None:
    """And with trust, from the command line, converted, compared, salvaged."""
    face(family, ring, True, figure)


def face(family: str, ring: Arena, thorough: bool, figure: Any) -> None:
    wrong: list[str] = []
    cannot: list[str] = []
    spent: list[tuple[float, int, str]] = []
    for name in FAMILIES[family]:
        result = ring.ask(family, name, thorough)
        if "cannot" in result:
            cannot.append(f"{name}: {result['cannot']}")
            continue
        wrong += misses(family, name, result)
        spent.append((result["seconds"], result.get("grown", 0), name))
        figure(f"attacks{' thoroughly' if thorough else ''}: {family}")
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong)
    for line in cannot:
        print(f"not made here: {line}")
    if spent:
        tell_most(f"{family}{', thoroughly' if thorough else ''}", spent, figure)


def tell_most(where: str, spent: list[tuple[float, int, str]], figure: Any) -> None:
    """For people: no time is asserted but the patience with a child that hangs."""
    longest, largest = max(spent), max(spent, key=lambda s: s[1])
    figure(f"seconds of the longest attack: {where}: {longest[2]}", round(longest[0], 1))
    figure(f"MiB of the largest attack: {where}: {largest[2]}", largest[1] >> 20)


def test_the_readme_lists_every_attack() -> None:
    assert (HERE / "README.md").read_text() == readme.text(), "python -m attacks.readme"
