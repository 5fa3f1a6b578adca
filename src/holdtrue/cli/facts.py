"""What `inspect` says above and below the tree: kind, origin, waste, what it would have run."""

from typing import Any

from rich.text import Text

from holdtrue.checkpoint import Checkpoint
from holdtrue.cli.origins import origin_of_ours
from holdtrue.cli.render import counted, size
from holdtrue.formats.view import LazyTensor
from holdtrue.stored import tensor_bytes

_KINDS = {
    "torch-zip": "PyTorch zip",
    "torch-legacy": "PyTorch legacy file (before 1.6)",
    "torch-tar": "PyTorch tar file (before 0.4)",
    "torchscript": "TorchScript archive",
    "pt2": "exported program",
    "pickle": "plain pickle",
    "safetensors": "safetensors",
    "hf-index": "Hugging Face shards",
    "dcp": "distributed checkpoint",
    "dcp-safetensors": "distributed checkpoint in safetensors",
    "npy": "NumPy array",
    "npz": "NumPy archive",
}
_CONTENTS = {
    "module": "whole model pickled",
    "state-dict": "state dict",
    "lightning": "Lightning checkpoint",
    "optimizer": "optimizer state",
    "tensor": "one tensor",
    "checkpoint": "training checkpoint",
}
# Shown in a line of their own, or of no use to a person.
_APART = {"kind", "would_run", "writer", "serialization_id", "environment", "created", "step",
          "format_version", "state_dict", "system", "code"}  # fmt: skip
_SLACK = 1024  # bytes by which a storage may exceed its tensors before it is worth a word
_DANGER = {"dangerous": "bold red", "unknown": "yellow", "library": "dim"}


def heading(checkpoint: Checkpoint) -> Text:
    """The path, what it is, how much there is of it."""
    facts = []
    if checkpoint.manifest is not None:
        facts.append(f"holdtrue checkpoint, format {checkpoint.manifest.version}")
        if checkpoint.step is not None:
            facts.append(f"step {checkpoint.step:,}")
    else:
        kind = _KINDS.get(checkpoint.format, checkpoint.format)
        content = _CONTENTS.get(str(checkpoint.about.get("kind")))
        facts.append(f"{kind}, {content}" if content else kind)
    total = sum(storages(checkpoint).values())
    facts += [counted(len(checkpoint.tensors), "tensor"), size(total)]
    if checkpoint.manifest is None:
        facts.append("read without running it")
    return Text.assemble((str(checkpoint.path), "bold"), " · " + " · ".join(facts))


def origin(checkpoint: Checkpoint) -> list[str]:
    """Who wrote it, when, and what the format says of itself."""
    about = checkpoint.about
    if checkpoint.manifest is not None:
        return origin_of_ours(checkpoint, checkpoint.manifest.environment)
    lines = [f"written by {about['writer']}"] if about.get("writer") else []
    rest = [f"{k.replace('_', ' ')} {_plain(v)}" for k, v in about.items() if v and k not in _APART]
    return [*lines, ", ".join(rest)] if rest else lines


def storages(checkpoint: Checkpoint) -> dict[tuple[str, str], int]:
    """Bytes of each distinct storage."""
    found: dict[tuple[str, str], int] = {}
    for tensor in checkpoint.view.tensors.values():
        for part in (tensor, *tensor.components.values()):
            for piece in part.pieces:
                found[piece.storage.file, piece.storage.key] = piece.storage.nbytes
    return found


def waste(checkpoint: Checkpoint) -> Text | None:
    """Storages that are larger than the tensors which use them."""
    users: dict[tuple[str, str], list[tuple[str, LazyTensor]]] = {}
    for name, tensor in checkpoint.view.tensors.items():
        for piece in tensor.pieces:
            users.setdefault((piece.storage.file, piece.storage.key), []).append((name, tensor))
    sizes = storages(checkpoint)
    lines = []
    for key, tensors in users.items():
        used = sum(tensor_bytes(t) for t in {id(t): t for _, t in tensors}.values())
        if len(tensors[0][1].pieces) == 1 and sizes[key] > used + _SLACK:
            name = tensors[0][0] or "the tensor"
            lines.append(f"  {name}  {size(used)} of a storage of {size(sizes[key])}")
    if not lines:
        return None
    text = Text("storages larger than their tensors", style="yellow")
    return text.append("\n" + "\n".join(lines), style="default")


def would_run(checkpoint: Checkpoint) -> Text | None:
    """What unpickling the file would have imported and called, beyond what makes tensors."""
    operations: list[Any] = checkpoint.about.get("would_run") or []
    if not operations:
        return None
    text = Text("what unpickling would have run (nothing was)", style="bold")
    for operation in operations:
        times = f", {operation.count} times" if operation.count > 1 else ""
        place = operation.place or "not in the tree"
        text.append(f"\n  {operation.severity:<9} ", style=_DANGER.get(operation.severity, ""))
        text.append(f"{operation.kind:<6} {operation.name}  at {place}{times}")
    return text


def _plain(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return text if len(text) <= 120 else text[:119] + "…"
