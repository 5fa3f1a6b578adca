"""What is left of a damaged file, told beside the damage itself."""

from collections.abc import Iterable
from pathlib import Path

from msgspec.structs import replace

from holdtrue.doctor.amounts import counted
from holdtrue.doctor.commands import salvage_command
from holdtrue.doctor.damage_causes import by_cause
from holdtrue.errors import HoldtrueError
from holdtrue.findings import Finding
from holdtrue.formats.salvaging import Salvaged, salvage
from holdtrue.limits import MIB

_READ = 256 * MIB  # larger files are not read for this unless all values are


def told_with_rest(path: str, findings: Iterable[Finding], *, deep: bool = False) -> list[Finding]:
    """The findings, with the command that saves the rest, and which tensors that rest is."""
    told = by_cause(findings)
    if not any(f.severity == "error" for f in told):
        return told
    if not Path(path).is_file() or (not deep and Path(path).stat().st_size > _READ):
        return told
    try:
        left = salvage(path)
    except HoldtrueError as error:
        lost = any(f.code == "nothing-whole" for f in error.report.findings)
        return [_hopeless(f) for f in told] if lost else told
    if not left.view.tensors and not left.unnamed:
        return [_hopeless(f) for f in told]
    command = salvage_command(path)
    told = _with_command(told, command)
    if not left.lost and not left.unnamed:
        return told
    errors = [i for i, finding in enumerate(told) if finding.severity == "error"]
    first = next((i for i in errors if told[i].command == command), errors[0])
    told[first] = _with_rest(told[first], path, left)
    return told


def _with_command(told: list[Finding], command: str) -> list[Finding]:
    """One line writes what is whole, whatever the number of damages: it is printed once."""
    own = {finding.code for finding in told if finding.command == command}
    mendable = sorted(f.code for f in told if _mendable(f))
    bearer = mendable[0] if mendable else next(iter(own), "")
    given = False
    for i, finding in enumerate(told):
        if not _mendable(finding) and finding.command != command:
            continue
        if finding.code == bearer and not given:
            told[i], given = replace(finding, command=command), True
        else:
            own_fix = finding.fix if "salvage" not in finding.fix else ""
            said = f"`holdtrue salvage`, as under {bearer}, writes what is whole"
            told[i] = replace(finding, command="", fix=own_fix or said)
    return told


def _mendable(finding: Finding) -> bool:
    return finding.severity == "error" and not finding.command


def _hopeless(finding: Finding) -> Finding:
    """The finding without a hope of salvaging; what else it proposes stays."""
    if finding.severity != "error":
        return finding
    own = finding.fix if "salvage" not in finding.fix else ""
    fix = own or "go back to the checkpoint before, or fetch the file again"
    return replace(finding, fix=f"{fix}: no tensor in it is whole")


def _with_rest(finding: Finding, path: str, left: Salvaged) -> Finding:
    """The finding with the tensors that it costs among its places, and what is left in numbers."""
    whole, lost = len(left.view.tensors), len(left.lost)
    places = tuple(
        f"{path}: {one.path}: {one.dtype} {list(one.shape)}, "
        + (f"{one.missing:,} bytes missing" if one.missing else "its bytes are not those written")
        for one in left.lost
    )
    names = ", ".join(list(left.view.tensors)[:5]) + (" …" if whole > 5 else "")
    said = f"{counted(whole, 'tensor')} of {whole + lost:,} whole"
    said += f" ({names})" if whole else ""
    if left.unnamed:
        said += f"; {counted(len(left.unnamed), 'storage')} whole without a name"
    return replace(
        finding,
        places=(*(finding.places or (finding.where,)), *places),
        why=f"{finding.why}; {said}" if finding.why else said,
        fix="writes what is whole, and exits with 1 because of what is not; take the rest from an "
        "older checkpoint, or fetch the file again",
    )
