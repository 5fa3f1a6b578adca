"""One call for a file and a model, not told again by every finding that it mends."""

from collections.abc import Iterable

from msgspec.structs import replace

from holdtrue.findings import Finding

# That the weights lie below a key is told again, and better, by what is filled from there.
_CHOSEN = frozenset({"nested-key", "state-dict-ambiguous"})


def called_once(findings: Iterable[Finding], *, trains: bool) -> list[Finding]:
    """The findings about a model; `trains` is for one that is given with its optimizer."""
    found = list(findings)
    codes = {finding.code for finding in found}
    idle = {"training-checkpoint"} if codes & _CHOSEN else set()
    if trains:  # train mode is as it should be
        idle.add("train-mode")
    if "values-out-of-range" in codes:  # with --deep: rounding them would make infinities
        found = [_unrounded(f) for f in found if not (f.code == "restore-call" and _rounds(f))]
    call = next((f.command for f in found if f.code == "restore-call"), "")
    bearer = _bearer(found, call)
    return [
        finding if finding is bearer else _without(finding, call)
        for finding in found
        if finding.code not in idle
    ]


def _bearer(findings: list[Finding], call: str) -> Finding | None:
    """The error or warning that the call mends best: it has the line beside `restore-call`, which
    says that it was tried."""
    worse = [f for f in findings if call and f.command == call and f.severity != "note"]
    return min(worse, key=lambda f: (f.severity != "error", -f.count, f.code), default=None)


def _rounds(finding: Finding) -> bool:
    return '"dtype-narrowed"' in finding.command


def _unrounded(finding: Finding) -> Finding:
    return replace(finding, command="") if _rounds(finding) else finding


def _without(finding: Finding, call: str) -> Finding:
    if not call or finding.code == "restore-call" or finding.command == "":
        return finding
    if finding.severity == "note" and _is_for_model(finding.command):
        return replace(finding, command="")
    if finding.command == call and "rename=" in call:
        return replace(finding, command="")
    return finding


def _is_for_model(command: str) -> bool:
    """Whether it is a restore of the model alone, and no choice between several."""
    _, _, arguments = command.partition(").restore(")
    return (
        command.startswith("holdtrue.open(")
        and arguments.startswith("model=model")
        and (", optimizer=" not in arguments and "source=" not in arguments)
    )
