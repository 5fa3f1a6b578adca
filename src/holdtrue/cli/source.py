"""What `inspect` says of a model's architecture, and the text of its code."""

import re

from rich.text import Text

from holdtrue.checkpoint import Checkpoint
from holdtrue.cli.render import counted
from holdtrue.formats.checkpoint_directory import read_source
from holdtrue.records.architecture import Architecture

# Kept text is data: it must not move a terminal's cursor or set its title.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def architecture_lines(checkpoint: Checkpoint) -> list[str]:
    """One line for each model whose architecture is kept."""
    parts = checkpoint.manifest.parts if checkpoint.manifest else {}
    return [
        f"architecture of {name}: {_summary(part.architecture)}"
        for name, part in parts.items()
        if part.architecture is not None
    ]


def source_texts(checkpoint: Checkpoint) -> list[Text]:
    """The kept code, each file under its name."""
    if checkpoint.manifest is None:
        return []
    blocks = []
    for name, text in read_source(checkpoint.path, checkpoint.manifest).items():
        title = Text(f"# {name.removeprefix('source/')}\n", style="bold")
        blocks.append(title.append(_visible(text), style="default"))
    return blocks


def _summary(record: Architecture) -> str:
    own = [name for name, cls in record.classes.items() if cls.distribution is None]
    facts = [counted(len(record.modules), "module"), f"{len(record.classes)} classes"]
    if record.distributions:
        facts.append(", ".join(f"{n} {v}" for n, v in record.distributions.items()))
    if own:
        shown = ", ".join(name.rpartition(".")[2] for name in own[:4])
        more = f" and {len(own) - 4} more" if len(own) > 4 else ""
        kept = "code kept, see --source" if record.files else "no source was found"
        facts.append(f"own {shown}{more}: {kept}")
    return _visible(" · ".join(facts))


def _visible(text: str) -> str:
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
