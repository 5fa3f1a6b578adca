"""What a file's name promises, and the file does not keep."""

import re
import shlex
from collections.abc import Iterator
from pathlib import PurePath

from holdtrue.doctor.commands import restore_command
from holdtrue.findings import Finding
from holdtrue.formats.view import View


def wrong_suffix(view: View) -> Iterator[Finding]:
    """A name that makes loaders choose the wrong reader."""
    suffix = PurePath(view.path).suffix.lower()
    pickled = view.format in ("torch-zip", "torch-legacy", "torch-tar", "pickle")
    if suffix == ".safetensors" and pickled:
        says, is_ = "safetensors", "a file of torch.save"
        symptom = "safetensors says `header too large`, or HeaderTooLarge"
    elif suffix in (".pt", ".pth", ".ckpt", ".bin") and view.format == "safetensors":
        says, is_ = "torch", "a safetensors file"
        symptom = "torch.load says `Unsupported operand` or `invalid load key`"
    else:
        return
    right = view.path.removesuffix(PurePath(view.path).suffix)
    right += ".pt" if pickled else ".safetensors"
    yield Finding(
        code="wrong-suffix",
        severity="note",
        where=view.path,
        what=f"the name says {says}, and the content is {is_}",
        why=f"loaders choose by the suffix: {symptom}; holdtrue goes by content",
        fix=f"mv {shlex.quote(view.path)} {shlex.quote(right)}; holdtrue reads it as it is",
        command=restore_command(view.path),
    )


def shard_alone(view: View) -> Iterator[Finding]:
    """One of several files of a model, taken for the whole."""
    name = PurePath(view.path).name
    found = re.search(r"-(\d{5})-of-(\d{5})\.(safetensors|bin|pt|pth)$", name)
    if found and view.format in ("safetensors", "torch-zip", "torch-legacy") and int(found[2]) > 1:
        folder = str(PurePath(view.path).parent)
        yield Finding(
            code="shard-alone",
            severity="note",
            where=view.path,
            what=f"the file is shard {int(found[1])} of {int(found[2])}",
            why="each shard holds other tensors of the model; the index beside them says which",
            fix="open the folder, or the index in it",
            command=restore_command(folder),
        )
