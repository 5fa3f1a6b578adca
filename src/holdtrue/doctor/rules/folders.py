"""What only a folder shows: unfinished, lost and equal checkpoints among their siblings."""

import re
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from msgspec.structs import replace

from holdtrue.doctor.amounts import size
from holdtrue.doctor.commands import quoted
from holdtrue.doctor.subjects import Folder, Kept
from holdtrue.findings import Finding, several
from holdtrue.formats.directories import is_stale_index

_UNFINISHED = re.compile(
    r"(\.tmp|\.temp|\.part|\.partial|\.crdownload|\.incomplete|\.aria2|\.download|\.swp|~)(\.\d+)?$"
    r"|^\.?(tmp[-_.]|~)",
    re.IGNORECASE,
)
_BEST = re.compile(r"(^|[^a-z])best([^a-z]|$)", re.IGNORECASE)
_LAST = re.compile(r"(^|[^a-z])(last|latest|final|current)([^a-z]|$)", re.IGNORECASE)
# Names of what tells one moment of a training from another: counters and metrics.
_MOMENT = re.compile(
    r"epoch|step|iter|loss|acc|score|metric|perplex|ppl|bleu|rouge|auc|iou|map|psnr|ssim|f1|wer"
    r"|error|reward|val_|best_",
    re.IGNORECASE,
)
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.safetensors|\.bin)$")
_SMALL = 0.8  # of its siblings' median size


def damaged(folder: Folder) -> Iterator[Finding]:
    """Checkpoints of the folder that cannot be opened, or miss bytes."""
    for one in folder.kept:
        if _UNFINISHED.search(one.name):
            continue  # it says so itself
        beside = _beside(folder, one)
        for finding in one.findings:
            if finding.severity == "error" and beside and finding.saved is None:
                yield replace(finding, saved=_sizes(beside), expected=size(one.nbytes))
            elif finding.severity == "error":
                yield finding


def smaller_than_siblings(folder: Folder) -> Iterator[Finding]:
    """A file that opens, and lacks much of what its siblings have."""
    for one in folder.kept:
        beside = _beside(folder, one)
        if one.findings or not beside or not one.format:
            continue
        middle = sorted(beside)[len(beside) // 2]
        if one.nbytes < _SMALL * middle:
            yield Finding(
                code="smaller-than-siblings",
                severity="warning",
                where=_where(folder, one),
                what="a checkpoint is much smaller than those saved beside it",
                why="a save that was killed, or that left parts out, ends so",
                saved=size(one.nbytes),
                expected=_sizes(beside),
                fix="compare it with one of the others",
                command=f"holdtrue diff {_where(folder, one)} {_largest(folder, one)}",
                confidence="likely",
            )


def half_written(folder: Folder) -> Iterator[Finding]:
    """Names that programs give to files until they are whole; and what killed saves left."""
    names = [name for name in folder.names if _UNFINISHED.search(name)]
    if names:
        places = tuple(f"{folder.path}/{name}" for name in names)
        yield Finding(
            code="half-written",
            severity="warning",
            where=places[0],
            places=several(places),
            what="a save or a download began here and never ended",
            why="the file has the name that is given until all bytes are there",
            fix="use another checkpoint, and delete it once nothing writes to it any more",
        )
    if folder.leftovers:
        places = tuple(f"{folder.path}/.staging/{name}" for name in folder.leftovers)
        yield Finding(
            code="half-written",
            severity="warning",
            where=places[0],
            places=several(places),
            what="a save began here and never ended",
            why="the process was killed, or the disk was full; no checkpoint was harmed by it",
            fix="the next save of the run clears this away",
        )


def put_aside(folder: Folder) -> Iterator[Finding]:
    """Damaged checkpoints of a run that a later save of the same step replaced."""
    names = [name for name in folder.names if name.startswith("damaged-step-")]
    if names and folder.run:
        places = tuple(f"{folder.path}/{name}" for name in names)
        yield Finding(
            code="put-aside",
            severity="note",
            where=places[0],
            places=several(places),
            what="damaged checkpoints were put aside",
            why="resume passed over them, and the step was saved anew",
            fix="holdtrue salvage takes out what is whole; then they can be deleted",
        )


def equal_checkpoints(folder: Folder) -> Iterator[Finding]:
    """The same weights under several names, where one is called best, or the metrics differ."""
    groups: dict[str, list[Kept]] = {}
    for one in folder.kept:
        if one.fingerprint:
            groups.setdefault(one.fingerprint, []).append(one)
    for same in groups.values():
        if len(same) < 2:
            continue
        differ = _differing(same)
        best = any(_BEST.search(one.name) for one in same)
        last = any(_LAST.search(one.name) and not _BEST.search(one.name) for one in same)
        if best and (differ or (last and not _same_moment(same))):
            yield _equal(
                folder, same, differ, "best-equals-last",
                "`best = model.state_dict()` keeps no copy: it goes on changing with the model, "
                "and what is saved as best is the last",
                "copy.deepcopy(model.state_dict()) when it is best, or save it at once: "
                'holdtrue.Run(…, keep=holdtrue.Keep(best=1, by="val_loss"))',
            )  # fmt: skip
        elif differ:
            yield _equal(
                folder, same, differ, "weights-repeated",
                "between them training changed no weight, or one state was saved several times",
                "check that optimizer.step() runs, that the rate is not 0, and that nothing is "
                "frozen that should train; and that what is saved is the model that trains",
            )  # fmt: skip


def pointers(folder: Folder) -> Iterator[Finding]:
    """A file that names the newest checkpoint, where that is not there or not whole."""
    for name, target in folder.pointers.items():
        one = next((k for k in folder.kept if k.name.split("/")[0] == target), None)
        present = target in folder.names or Path(target).exists()
        if present and not (one and one.findings):
            continue
        # Megatron writes a number; its folders are called iter_0000500.
        if target.isdecimal() and any(target in other for other in folder.names):
            continue
        yield Finding(
            code="latest-dangling",
            severity="warning",
            where=f"{folder.path}/{name}",
            what=f"`{name}` names a checkpoint that is not " + ("whole" if present else "there"),
            why=f"it says {quoted(target[:80])}; it was written before the data, or the data was "
            "deleted since",
            fix="write the name of the newest whole checkpoint into it",
        )


def shards(folder: Folder) -> Iterator[Finding]:
    """Sets of shards without their index, or with a gap."""
    sets: dict[tuple[str, int, str], set[int]] = {}
    for name in folder.names:
        found = _SHARD.fullmatch(name)
        if found:
            key = (found[1], int(found[3]), found[4])
            sets.setdefault(key, set()).add(int(found[2]))
    for (stem, count, suffix), there in sets.items():
        absent = [n for n in range(1, min(count, 10_000) + 1) if n not in there]
        names = [f"{stem}-{n:05d}-of-{count:05d}{suffix}" for n in absent]
        index = f"{stem}{suffix}.index.json"
        if names:
            places = tuple(f"{folder.path}/{name}" for name in names)
            yield Finding(
                code="shard-missing",
                severity="error",
                where=places[0],
                places=several(places),
                what=f"{len(names)} of {count} shards {'is' if len(names) == 1 else 'are'} missing",
                why=f"each shard holds other tensors; {', '.join(names[:4])} are not in the folder",
                fix=f"fetch {', '.join(names[:4])} again from where the set came from",
            )
        elif index not in folder.names:
            yield Finding(
                code="index-missing",
                severity="warning",
                where=f"{folder.path}/{index}",
                what="the shards are there, and their index is not",
                why="the index says which tensor is in which shard; loaders look for it first",
                fix=f"fetch {index} again from where the set came from",
            )


def stale_index(folder: Folder) -> Iterator[Finding]:
    """An index of shards that are gone, beside the one file that replaced them."""
    for index in sorted(folder.names):
        if index.endswith(".index.json") and is_stale_index(Path(folder.path), index, folder.names):
            whole = index.removesuffix(".index.json")
            yield Finding(
                code="index-stale",
                severity="warning",
                where=f"{folder.path}/{index}",
                what=f"the index is left over: none of its shards is here, and {whole} is",
                why="an earlier save was split into shards; from_pretrained takes the whole file, "
                "other loaders go by the index and miss the shards",
                fix="remove the index, unless it is the shards that should be here",
                command=f"rm {quote(f'{folder.path}/{index}')}",
            )


def _equal(
    folder: Folder, same: list[Kept], differ: dict[str, list[object]], code: str, why: str, fix: str
) -> Finding:
    said = "; ".join(
        f"{key} {' and '.join(map(repr, values[:3]))}" for key, values in list(differ.items())[:4]
    )
    names = " and ".join(one.name for one in same[:3]) + (" …" if len(same) > 3 else "")
    return Finding(
        code=code,
        severity="warning",
        where=_where(folder, same[0]),
        places=tuple(_where(folder, one) for one in same),
        what=f"{names} hold the same weights",
        why=(f"they say {said} of them; " if said else "every checksum is equal; ") + why,
        fix=fix,
        confidence="certain" if differ else "likely",
    )


def _differing(same: list[Kept]) -> dict[str, list[object]]:
    """What they say of themselves and should not, if they are one state."""
    found: dict[str, list[object]] = {}
    for key in same[0].values:
        values = [one.values[key] for one in same if key in one.values]
        if len(values) == len(same) and any(value != values[0] for value in values):
            found[key] = values
    steps: list[object] = [one.step for one in same if one.step is not None]
    return {"step": steps, **found} if found and steps else found


def _same_moment(same: list[Kept]) -> bool:
    """Whether all say that they are of one moment: then the last one was the best."""
    if same[0].step is not None:
        return all(one.step == same[0].step for one in same)
    told = [key for key in same[0].values if _MOMENT.search(key)]
    return bool(told) and all(
        key in one.values and one.values[key] == same[0].values[key] for key in told for one in same
    )


def _beside(folder: Folder, one: Kept) -> list[int]:
    """Sizes of at least two siblings whose names differ in numbers only."""
    pattern = _pattern(one.name)
    found = [k.nbytes for k in folder.kept if k is not one and _pattern(k.name) == pattern]
    return found if len(found) > 1 and re.search(r"\d", one.name) else []


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _sizes(sizes: list[int]) -> str:
    least, most = size(min(sizes)), size(max(sizes))
    return f"{least} each" if least == most else f"{least} to {most}"


def _largest(folder: Folder, one: Kept) -> str:
    alike = [k for k in folder.kept if _pattern(k.name) == _pattern(one.name)]
    return _where(folder, max(alike, key=lambda k: k.nbytes))


def _where(folder: Folder, one: Kept) -> str:
    return f"{folder.path}/{one.name}"
