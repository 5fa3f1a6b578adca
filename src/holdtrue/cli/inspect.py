"""holdtrue inspect: what a checkpoint holds, without loading it."""

from typing import Any

import click
import msgspec
from rich.table import Table
from rich.text import Text

from holdtrue.checkpoint import Checkpoint, StoredTensor
from holdtrue.checkpoint import open as open_checkpoint
from holdtrue.cli.render import age, show_json, size, stdout
from holdtrue.cli.subtrees import Leaf, rows
from holdtrue.records.inert import Record
from holdtrue.records.manifest import Part


@click.command(name="inspect", short_help="What a checkpoint holds.")
@click.argument("path")
@click.option("--all", "everything", is_flag=True, help="Every tensor, however many there are.")
@click.option("--json", is_flag=True, help="Everything as JSON.")
def command(path: str, everything: bool, json: bool) -> None:
    """What a checkpoint holds: its parts, tensors, values and origin. Nothing of it is run."""
    checkpoint = open_checkpoint(path)
    if json:
        show_json(_as_json(checkpoint))
        return
    console = stdout()
    console.print(_heading(checkpoint))
    for line in _origin(checkpoint):
        console.print(Text(line, style="dim"))
    for name, part in checkpoint.manifest.parts.items():
        console.print()
        console.print(_part(checkpoint, name, part, 10**9 if everything else 32))


def _heading(checkpoint: Checkpoint) -> Text:
    manifest = checkpoint.manifest
    total = sum(f.nbytes for f in manifest.files.values())
    facts = [f"holdtrue checkpoint, format {manifest.version}"]
    if manifest.step is not None:
        facts.append(f"step {manifest.step:,}")
    facts += [f"{len(manifest.tensors):,} tensors", size(total)]
    return Text.assemble((str(checkpoint.path), "bold"), " · " + " · ".join(facts))


def _origin(checkpoint: Checkpoint) -> list[str]:
    made = checkpoint.manifest.environment
    lines = [
        f"saved {age(checkpoint.created)} ago ({checkpoint.created}) by holdtrue {made.holdtrue}, "
        f"torch {made.torch}, Python {made.python}, {made.platform}"
    ]
    metrics = checkpoint.metrics
    if metrics:
        lines.append("metrics " + ", ".join(f"{k} {v}" for k, v in metrics.items()))
    return lines


def _part(checkpoint: Checkpoint, name: str, part: Part, most: int) -> Table | Text:
    leaves = {
        key.partition("/")[2]: _leaf(tensor)
        for key, tensor in checkpoint.tensors.items()
        if key.partition("/")[0] == name
    }
    title = Text.assemble((name, "bold"), "  ", (part.class_name or part.kind, "dim"))
    if not leaves:
        return Text.assemble(title, "  ", _short(checkpoint.values[name]))
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    total = sum(leaf.nbytes for leaf in leaves.values())
    table.add_row(title, f"{len(leaves):,} tensors", size(total))
    for row in rows(leaves, most):
        table.add_row(Text("  " + row.name), row.what, size(row.nbytes))
    return table


def _leaf(tensor: StoredTensor) -> Leaf:
    what = f"{tensor.dtype} {list(tensor.shape)}"
    extra: list[str] = [tensor.layout] if tensor.layout != "strided" else []
    extra += ["frozen"] if tensor.parameter and not tensor.requires_grad else []
    return Leaf(" ".join([what, *extra]), tensor.nbytes)


def _short(value: Any) -> str:
    """A value in one line; of an object, what it holds."""
    if isinstance(value, Record):
        value = value.state
    if isinstance(value, dict):
        text = ", ".join(f"{k}={v!r}" for k, v in value.items() if not str(k).startswith("_"))
    else:
        text = repr(value)
    return text if len(text) <= 100 else text[:99] + "…"


def _as_json(checkpoint: Checkpoint) -> dict[str, Any]:
    manifest = checkpoint.manifest
    return {
        "path": str(checkpoint.path),
        "format": manifest.format,
        "version": manifest.version,
        "created": manifest.created,
        "step": manifest.step,
        "metrics": manifest.metrics,
        "environment": msgspec.to_builtins(manifest.environment),
        "parts": {
            name: {"kind": part.kind, "class": part.class_name}
            for name, part in manifest.parts.items()
        },
        "tensors": {
            name: {
                "dtype": tensor.dtype,
                "shape": tensor.shape,
                "layout": tensor.layout,
                "device": tensor.device,
                "requires_grad": tensor.requires_grad,
                "bytes": tensor.nbytes,
            }
            for name, tensor in checkpoint.tensors.items()
        },
        "files": msgspec.to_builtins(manifest.files),
    }
