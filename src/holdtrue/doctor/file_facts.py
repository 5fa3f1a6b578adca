"""What a file is and how much of it there is, in the words that people read; from data alone."""

from collections.abc import Mapping

from msgspec import Struct

from holdtrue.doctor.amounts import size
from holdtrue.formats.tensor_bytes import tensor_bytes
from holdtrue.formats.view import LazyTensor, View

KINDS = {
    "holdtrue": "holdtrue checkpoint",
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
    "training-folder": "a trainer's folder",
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
_SLACK = 1024  # bytes by which a storage may exceed its tensors before it is worth a word


class Wasted(Struct, frozen=True):
    """A storage of which the file's tensors use a part."""

    name: str  # of the first tensor that uses it
    used: int
    held: int


def kind_text(view: View) -> str:
    """PyTorch zip, whole model pickled"""
    kind = KINDS.get(view.format, view.format)
    content = _CONTENTS.get(str(view.about.get("kind")))
    if not view.tensors and view.about.get("kind") == "checkpoint":
        content = "values only"
    return f"{kind}, {content}" if content else kind


def about_text(view: View) -> str:
    """PyTorch zip, state dict · 44.7 MiB · read without running it"""
    held = size(sum(storages(view.tensors).values()))
    read = [] if view.format == "holdtrue" else ["read without running it"]
    return " · ".join([kind_text(view), held, *read])


def storages(tensors: Mapping[str, LazyTensor]) -> dict[tuple[str, str], int]:
    """Bytes of each distinct storage."""
    found: dict[tuple[str, str], int] = {}
    for tensor in tensors.values():
        for part in (tensor, *tensor.components.values()):
            for piece in part.pieces:
                found[piece.storage.file, piece.storage.key] = piece.storage.nbytes
    return found


def wasted(view: View) -> list[Wasted]:
    """Storages that are larger than the tensors which use them."""
    users: dict[tuple[str, str], list[tuple[str, LazyTensor]]] = {}
    for name, tensor in view.tensors.items():
        for piece in tensor.pieces:
            users.setdefault((piece.storage.file, piece.storage.key), []).append((name, tensor))
    sizes = storages(view.tensors)
    found = []
    for key, tensors in users.items():
        used = sum(tensor_bytes(t) for t in {id(t): t for _, t in tensors}.values())
        if len(tensors[0][1].pieces) == 1 and sizes[key] > used + _SLACK:
            found.append(Wasted(tensors[0][0] or "the tensor", used, sizes[key]))
    return found
