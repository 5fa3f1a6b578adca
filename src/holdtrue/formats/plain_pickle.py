"""A plain pickle: NumPy arrays, tensors that went through `pickle.dump`, or anything else."""

from holdtrue.findings import Finding
from holdtrue.formats.checkpoint_about import describe_tree
from holdtrue.formats.finding_groups import group
from holdtrue.formats.nested_torch import read_nested
from holdtrue.formats.pickle_machine import walk
from holdtrue.formats.pickle_source import from_file
from holdtrue.formats.tree_walk import tensors_by_path
from holdtrue.formats.view import View


def read(path: str) -> View:
    """The tree of a plain pickle file."""
    return _view(path, salvage=False)


def salvage(path: str) -> View:
    """The tree as far as a damaged file tells it."""
    return _view(path, salvage=True)


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
    about = {"protocol": walked.protocol, "would_run": list(walked.would_run)}
    return View(
        path=path,
        format="pickle",
        about=about | describe_tree(walked.value),
        tree=walked.value,
        tensors=tensors_by_path(walked.value, path),
        findings=group(findings),
    )
