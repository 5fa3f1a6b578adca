"""What a checkpoint holds, in words and as JSON."""

from itertools import islice
from reprlib import Repr
from typing import Any

import msgspec
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from holdtrue.checkpoint import Checkpoint, foreign_parts
from holdtrue.checkpoint import open as open_checkpoint
from holdtrue.cli.facts import heading, origin, waste, would_run
from holdtrue.cli.origins import can_be_built
from holdtrue.cli.render import counted, show_json, size, stdout, styled_finding
from holdtrue.cli.source import architecture_lines, source_texts
from holdtrue.cli.subtrees import Leaf, rows
from holdtrue.formats.module_tree import is_module, state_dict
from holdtrue.formats.view import LazyTensor
from holdtrue.records.inert import Record
from holdtrue.stored import StoredTensor

_SHOWN = 16  # entries of a dict in one line, which are cut anyway
_DIGITS_BITS = 332  # about 100 decimal digits
_LEADING_BITS = 64  # of a longer number, a multiple of 4 from its highest bit
_MOST = 32  # rows of one part, unless all are asked for


def show_contents(path: str, *, everything: bool, source: bool, json: bool) -> None:
    """What is at the path, on stdout. Raises OpenError or DamageError."""
    checkpoint = open_checkpoint(path)
    if json:
        show_json(_as_json(checkpoint))
        return
    console = stdout()
    if source:
        for text in source_texts(checkpoint):
            console.print(text)
        return
    console.print(heading(checkpoint))
    for line in (*origin(checkpoint), *architecture_lines(checkpoint)):
        console.print(Text(line, style="dim"))
    most = 10**9 if everything else _MOST
    leaves = _leaves(checkpoint)
    for name, value in _parts(checkpoint).items():
        console.print()
        console.print(_part(checkpoint, name, value, leaves.get(name, {}), most))
        line = can_be_built(checkpoint.manifest.parts[name]) if checkpoint.manifest else ""
        if line:
            console.print(Text("  " + line, style="dim"))
    for block in (waste(checkpoint), would_run(checkpoint)):
        if block is not None:
            console.print()
            console.print(block)
    for finding in checkpoint.view.findings:
        console.print()
        console.print(styled_finding(finding))


def _parts(checkpoint: Checkpoint) -> dict[str, Any]:
    if checkpoint.manifest is not None:
        return dict(checkpoint.view.tree)
    return foreign_parts(checkpoint.view)


def _leaves(checkpoint: Checkpoint) -> dict[str, dict[str, Leaf]]:
    """part → name within it → tensor; a pickled model's under the names of its state dict."""
    view = checkpoint.view
    # A state dict, a model or a lone value is the whole file, and stands under one name.
    parts = foreign_parts(view) if checkpoint.manifest is None else {}
    single = any(value is view.tree for value in parts.values())
    if single and is_module(view.tree):
        names = state_dict(view.tree, view.path)
        return {"model": {n: _leaf(StoredTensor(lazy, n)) for n, lazy in names.items()}}
    found: dict[str, dict[str, Leaf]] = {}
    for key, tensor in checkpoint.tensors.items():
        part, _, name = key.partition("/")
        if single:
            part, name = checkpoint.parts[0], key
        found.setdefault(part, {})[name or part] = _leaf(tensor)
    return found


def _part(
    checkpoint: Checkpoint, name: str, value: Any, leaves: dict[str, Leaf], most: int
) -> RenderableType:
    title = Text.assemble((name, "bold"), "  ", (_kind(checkpoint, name, value), "dim"))
    if not leaves:
        return Text.assemble(title, "  ", _short(value))
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    total = sum(leaf.nbytes for leaf in leaves.values())
    table.add_row(title, counted(len(leaves), "tensor"), size(total))
    for row in rows(leaves, most):
        table.add_row(Text("  " + row.name), row.what, size(row.nbytes))
    return table


def _kind(checkpoint: Checkpoint, name: str, value: Any) -> str:
    if checkpoint.manifest is not None:
        part = checkpoint.manifest.parts[name]
        return part.class_name or part.kind
    if isinstance(value, LazyTensor):
        return "tensor" if value.numpy is None else "array"
    return value.class_name if isinstance(value, Record) else type(value).__name__


def _built(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """For a module: whether and how it can be built again."""
    part = checkpoint.manifest.parts[name] if checkpoint.manifest else None
    if part is None or part.rebuild is None:
        return {}
    recipe = part.rebuild.recipe
    return {"buildable": recipe is not None, "how": can_be_built(part)}


def _architecture(checkpoint: Checkpoint, name: str) -> Any:
    part = checkpoint.manifest.parts[name] if checkpoint.manifest else None
    return msgspec.to_builtins(part.architecture) if part else None


def _leaf(tensor: StoredTensor) -> Leaf:
    what = f"{tensor.dtype} {list(tensor.shape)}"
    extra: list[str] = [tensor.layout] if tensor.layout != "strided" else []
    extra += ["frozen"] if tensor.parameter and not tensor.requires_grad else []
    extra += [f"on {tensor.device}"] if tensor.device != "cpu" else []
    return Leaf(" ".join([what, *extra]), tensor.nbytes)


def _short(value: Any) -> str:
    """A value in one line; of an object, what it holds."""
    if isinstance(value, Record):
        value = value.state if value.state is not None else value.args
    if isinstance(value, LazyTensor):
        return repr(value)
    if isinstance(value, dict):
        shown = ((k, v) for k, v in value.items() if not _said(k).startswith(("'_", "_")))
        text = ", ".join(f"{k if isinstance(k, str) else _said(k)}={_said(v)}"
                         for k, v in islice(shown, _SHOWN))  # fmt: skip
    else:
        text = _said(value)
    return text if len(text) <= 100 else text[:99] + "…"


class _Bounded(Repr):
    """`repr` costs and grows with what a file holds, and fails on integers of 4,300 digits."""

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() <= _DIGITS_BITS:
            return repr(x)
        sign = "-" if x < 0 else ""
        return f"{sign}0x{abs(x) >> (x.bit_length() - _LEADING_BITS):x}…"


_BOUNDED = _Bounded()
_BOUNDED.maxlevel = 3  # a list that holds itself is _SHOWN times as long with each level
_BOUNDED.maxstring = _BOUNDED.maxother = 200
_BOUNDED.maxdict = _BOUNDED.maxlist = _BOUNDED.maxtuple = _BOUNDED.maxset = _SHOWN


def _said(value: Any) -> str:
    return _BOUNDED.repr(value)


def _as_json(checkpoint: Checkpoint) -> dict[str, Any]:
    manifest = checkpoint.manifest
    kept = waste(checkpoint)
    return {
        "path": str(checkpoint.path),
        "format": checkpoint.format,
        "version": manifest.version if manifest else checkpoint.about.get("format_version"),
        "created": checkpoint.created or None,
        "step": checkpoint.step,
        "metrics": manifest.metrics if manifest else None,
        "environment": msgspec.to_builtins(manifest.environment) if manifest else None,
        "about": msgspec.to_builtins(checkpoint.about, enc_hook=str),
        "parts": {
            name: {
                "kind": _kind(checkpoint, name, value),
                "architecture": _architecture(checkpoint, name),
                **_built(checkpoint, name),
            }
            for name, value in _parts(checkpoint).items()
        },
        "tensors": {
            name: {
                "dtype": tensor.dtype,
                "shape": tensor.shape,
                "stride": tensor.stride,
                "layout": tensor.layout,
                "device": tensor.device,
                "requires_grad": tensor.requires_grad,
                "bytes": tensor.nbytes,
            }
            for name, tensor in checkpoint.tensors.items()
        },
        "larger_than_their_tensors": kept.plain.splitlines() if kept else [],
        "findings": msgspec.to_builtins(checkpoint.view.findings),
    }
