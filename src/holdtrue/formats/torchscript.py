"""TorchScript archives: the module tree of `data.pkl`, the constants, and the names of the code.

The code under `code/` is TorchScript's own, in a Python-like spelling; its text is looked at for
what is a parameter and what is a buffer, and never run.
"""

import re
from typing import Any

from msgspec import Struct

from holdtrue.formats.finding_groups import group
from holdtrue.formats.torch_zip import Records, describe_records, open_records, walk_record
from holdtrue.formats.tree_walk import each_node, name_of, tensors_by_path
from holdtrue.formats.view import LazyTensor, View
from holdtrue.formats.zip_archive import read_directory
from holdtrue.limits import MIB, limits
from holdtrue.records.inert import Record

_CODE_BYTES = 16 * MIB  # of one file of code that is looked at
_CLASS = re.compile(r"^class (\w+)\(Module\):", re.MULTILINE)
_NAMES = re.compile(r"^  __(parameters|buffers)__ = \[([^\]\n]*)\]", re.MULTILINE)


class ScriptClass(Struct, frozen=True):
    """What the code says of one class: which of its tensors are registered."""

    parameters: tuple[str, ...]
    buffers: tuple[str, ...]


def read(path: str) -> View:
    """A TorchScript archive: `module` and, where there are any, `constants`."""
    archive = read_directory(path)
    records = open_records(archive, "data.pkl")
    about = describe_records(records)
    ordered = records.entry("byteorder") is not None
    walked = walk_record(records, "data.pkl", "data/")
    findings = list(walked.findings)
    tree: dict[str, Any] = {"module": walked.value}
    operations = [*walked.would_run]
    if records.entry("constants.pkl") is not None:
        constants = walk_record(records, "constants.pkl", "constants/")
        findings += constants.findings
        operations += constants.would_run
        if constants.value:
            tree["constants"] = constants.value
    classes = script_classes(records)
    names = state_names(walked.value, classes, path)
    about |= {
        "producer": "torch.jit of torch " + ("2.1 or later" if ordered else "1.4 to 2.0"),
        "protocol": walked.protocol,
        "kind": "torchscript",
        "class": walked.value.class_name if isinstance(walked.value, Record) else None,
        "code": [n for n in records.names() if n.startswith("code/") and n.endswith(".py")],
        "extra_files": records.folder("extra/"),
        "state_dict": names,
        # Classes under __torch__ are compiled from code/, not imported by Python.
        "would_run": [op for op in operations if not op.name.startswith("__torch__.")],
    }
    return View(
        path=path,
        format="torchscript",
        about=about,
        tree=tree,
        tensors=tensors_by_path(tree, path),
        findings=group((*archive.findings, *records.findings, *findings)),
    )


def script_classes(records: Records) -> dict[str, ScriptClass]:
    """The module classes of the archive's code, by qualified name."""
    found: dict[str, ScriptClass] = {}
    left = limits().pickle_bytes
    for name in records.folder("code/"):
        entry = records.entry(f"code/{name}")
        if not name.endswith(".py") or entry is None or entry.nbytes > min(_CODE_BYTES, left):
            continue
        left -= entry.nbytes
        text = (records.read(f"code/{name}", _CODE_BYTES) or b"").decode("utf-8", "replace")
        module = name.removesuffix(".py").replace("/", ".")
        starts = [*_CLASS.finditer(text)]
        for index, start in enumerate(starts):
            end = starts[index + 1].start() if index + 1 < len(starts) else len(text)
            lists = {m[1]: _quoted(m[2]) for m in _NAMES.finditer(text, start.end(), end)}
            found[f"{module}.{start[1]}"] = ScriptClass(
                lists.get("parameters", ()), lists.get("buffers", ())
            )
    return found


def state_names(module: Any, classes: dict[str, ScriptClass], where: str) -> dict[str, str]:
    """State-dict name → path in the tree, for the registered tensors of a script module."""
    found: dict[str, str] = {}
    for path, node in each_node(module, where):
        if not isinstance(node, Record) or not isinstance(node.state, dict):
            continue
        known = classes.get(node.class_name)
        for key, value in node.state.items():
            name = name_of(key)
            registered = known is None or name in known.parameters or name in known.buffers
            if isinstance(value, LazyTensor) and registered:
                inner = f"{path}/{name}" if path else name
                found[inner.replace("/", ".")] = f"module/{inner}"
    return found


def _quoted(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r'"([^"]*)"', text))
