"""One damage is one finding: what follows from it in the same file is left out."""

from collections.abc import Iterable

from msgspec.structs import replace

from holdtrue.findings import Finding, several

# What is told of a tensor or a record that another finding says is not there, or not whole.
_OF_LOST_RECORDS = frozenset({"storage-missing", "bytes-missing"})
_OF_SHORT_STORAGES = frozenset({"tensor-past-storage", "bytes-missing"})
# What comes of reading records by the directory of another archive.
_OF_ANOTHER_DIRECTORY = frozenset({
    "storage-missing", "bytes-missing", "tensor-past-storage", "storage-size-mismatch",
    "zip-name-mismatch", "zip-header-mismatch", "zip-overlap",
})  # fmt: skip


def by_cause(findings: Iterable[Finding]) -> list[Finding]:
    """The findings without those that follow from another of them."""
    told = list(findings)
    codes = {finding.code for finding in told}
    if {"zip-bad-offset", "zip-name-mismatch"} <= codes:
        return _of_two_archives(told)
    lost = _places(told, "zip-bad-offset")
    if lost:
        told = [left for f in told if (left := _less(f, lost, _OF_LOST_RECORDS)) is not None]
    if codes & {"storage-size-mismatch", "storage-missing", "zip-bad-offset"}:
        told = [f for f in told if f.code not in _OF_SHORT_STORAGES]
    return told


def same_place(place: str, other: str) -> bool:
    """Whether `m.pt: data/7` and `m.pt: m/data/7` are one record: the folder may be left out."""
    path, _, name = place.rpartition(": ")
    return place == other or (bool(path) and other.startswith(path) and other.endswith("/" + name))


def places_of(findings: Iterable[Finding]) -> set[str]:
    """Every place that errors name."""
    return {place for f in findings if f.severity == "error" for place in (f.places or (f.where,))}


def _of_two_archives(told: list[Finding]) -> list[Finding]:
    """The directory is of one archive, and records before it are of another."""
    foreign = _places(told, "zip-name-mismatch")
    (first, *_) = [f for f in told if f.code == "zip-name-mismatch"]
    left = []
    for finding in told:
        inside = any(finding.where.startswith(place) for place in foreign)
        if finding.code in _OF_ANOTHER_DIRECTORY or (inside and finding.code != "zip-bad-offset"):
            continue
        if finding.code == "zip-bad-offset":
            finding = replace(
                finding,
                what="the directory at the end is not of the archive that the file begins with",
                why=f"a record that it calls {first.expected} calls itself {first.saved}, and "
                f"{finding.count:,} more are not where it says: a shorter file was written over a "
                "longer one, or several processes wrote one file",
            )
        left.append(finding)
    return left


def _less(finding: Finding, lost: set[str], follow: frozenset[str]) -> Finding | None:
    """The finding without the places that are told as lost; None where no other is left."""
    if finding.code not in follow:
        return finding
    places = [p for p in finding.places or (finding.where,) if p not in lost]
    if not places:
        return None
    return replace(finding, where=places[0], places=several(places))


def _places(told: list[Finding], code: str) -> set[str]:
    return {place for f in told if f.code == code for place in (f.places or (f.where,))}
