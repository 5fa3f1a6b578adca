"""Command lines that mend a file, with its path written so that a shell takes it as it is."""

import json
import shlex
from collections.abc import Iterable
from pathlib import Path

from msgspec.structs import replace

from holdtrue.findings import Finding

_MENDED_BY_RESTORE = frozenset({
    "class-missing", "object-in-file", "plain-pickle", "torchscript-archive",
    "weights-only-refuses", "whole-model",
})  # fmt: skip


def convert_command(path: str, suffix: str = "/") -> str:
    """`holdtrue convert best.pt best/`: into a directory of holdtrue's, or a file by its suffix."""
    return f"holdtrue convert {shlex.quote(path)} {shlex.quote(beside(path, suffix))}"


def salvage_command(path: str) -> str:
    """`holdtrue salvage best.pt best-salvaged.pt`"""
    place = Path(path)
    suffix = place.suffix if place.suffix in (".pt", ".pth", ".bin", ".safetensors") else "/"
    return f"holdtrue salvage {shlex.quote(path)} {shlex.quote(beside(path, suffix, '-salvaged'))}"


def restore_command(path: str, arguments: str = "model=model") -> str:
    """A line of Python that fills the caller's model."""
    return f"holdtrue.open({quoted(path)}).restore({arguments})"


def into_model(findings: Iterable[Finding], path: str) -> list[Finding]:
    """For those who have the model at hand: filling it mends what a conversion would mend."""
    return [
        replace(finding, command=restore_command(path))
        if finding.command.startswith("holdtrue convert") and finding.code in _MENDED_BY_RESTORE
        else finding
        for finding in findings
    ]


def without_rest(findings: Iterable[Finding], path: str) -> list[Finding]:
    """What follows the end of a file is gone from one that is written anew."""
    return [
        replace(
            finding,
            fix="write all that belongs to it anew; what follows is left out",
            command=salvage_command(path),
        )
        if finding.code == "trailing-bytes" and not finding.fix
        else finding
        for finding in findings
    ]


def quoted(text: str) -> str:
    """Text as Python, in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def beside(path: str, suffix: str, mark: str = "") -> str:
    """The name of a result next to its source, and never the source's own."""
    place = Path(path)
    stem = place.with_suffix("") if place.suffix else place
    found = f"{stem}{mark}{suffix}"
    return f"{stem}-converted{suffix}" if found.rstrip("/") == str(place) else found
