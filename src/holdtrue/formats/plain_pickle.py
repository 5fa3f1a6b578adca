"""A plain pickle: NumPy arrays, tensors that went through `pickle.dump`, or anything else."""

from holdtrue.errors import HoldtrueError
from holdtrue.findings import Finding
from holdtrue.formats.checkpoint_about import describe_tree
from holdtrue.formats.finding_groups import group
from holdtrue.formats.nested_torch import read_nested
from holdtrue.formats.pickle_machine import Walked, walk
from holdtrue.formats.pickle_operations import Operation
from holdtrue.formats.pickle_source import PickleSource, from_file
from holdtrue.formats.tree_walk import tensors_by_path
from holdtrue.formats.view import View

_STREAMS = 8


def read(path: str) -> View:
    """The tree of a plain pickle file."""
    return _view(path, salvage=False)


def salvage(path: str) -> View:
    """The tree as far as a damaged file tells it."""
    return _view(path, salvage=True)


def _behind(source: PickleSource, path: str, walked: Walked) -> list[Operation]:
    """What the pickles behind the first would run: torch.load takes five of them, and takes a
    first one that computes torch's magic number for a file of its own."""
    found: list[Operation] = []
    for _ in range(_STREAMS):
        if not walked.complete or not source.remaining:
            break
        try:
            walked = walk(source, where=path, salvage=True)
        except HoldtrueError:
            break
        # Of bytes that are no pickle to the end, only what could not be there by chance.
        found += [o for o in walked.would_run if walked.complete or o.severity == "dangerous"]
    return found


def _view(path: str, *, salvage: bool) -> View:
    source = from_file(path, path)
    walked = walk(source, where=path, salvage=salvage, nested=read_nested)
    findings = list(walked.findings)
    if walked.complete and source.remaining:
        findings.append(
            Finding(
                code="trailing-bytes",
                severity="warning",
                where=f"{path}: byte {walked.end}",
                what=f"{source.remaining:,} bytes follow the pickle",
                why="several objects may have been pickled into one file; the first is shown",
            )
        )
    would_run = [*walked.would_run, *_behind(source, path, walked)]
    about = {"protocol": walked.protocol, "would_run": would_run}
    return View(
        path=path,
        format="pickle",
        about=about | describe_tree(walked.value),
        tree=walked.value,
        tensors=tensors_by_path(walked.value, path),
        findings=group(findings),
    )
