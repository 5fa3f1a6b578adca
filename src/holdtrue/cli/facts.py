"""What `inspect` says above and below the tree: kind, origin, waste, what it would have run."""

from typing import Any

from rich.text import Text

from holdtrue.checkpoint import Checkpoint
from holdtrue.cli.origins import origin_of_ours
from holdtrue.doctor.amounts import counted, size
from holdtrue.doctor.file_facts import kind_text, storages, wasted

# Shown in a line of their own, or of no use to a person.
_APART = {"kind", "would_run", "writer", "serialization_id", "environment", "created", "step",
          "format_version", "state_dict", "system", "code", "refused"}  # fmt: skip
_DANGER = {"dangerous": "bold red", "unknown": "yellow", "library": "dim"}


def heading(checkpoint: Checkpoint) -> Text:
    """The path, what it is, how much there is of it."""
    facts = []
    if checkpoint.manifest is not None:
        facts.append(f"holdtrue checkpoint, format {checkpoint.manifest.version}")
        if checkpoint.step is not None:
            facts.append(f"step {checkpoint.step:,}")
    else:
        facts.append(kind_text(checkpoint.view))
    total = sum(storages(checkpoint.view.tensors).values())
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


def waste(checkpoint: Checkpoint) -> Text | None:
    """Storages that are larger than the tensors which use them."""
    lines = [
        f"  {one.name}  {size(one.used)} of a storage of {size(one.held)}"
        for one in wasted(checkpoint.view)
    ]
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
