"""A path to a View: the format is told by content, and its reader is called."""

from collections.abc import Callable
from importlib import import_module

from holdtrue.formats.detect import Detected, Kind, detect
from holdtrue.formats.source import refuse
from holdtrue.formats.view import View

# Kind → module of this package and function in it. Imported when needed: to look into one file,
# the readers of twelve other formats need not be loaded.
_READERS: dict[Kind, tuple[str, str]] = {
    "holdtrue": ("checkpoint_directory", "read"),
    "torch-zip": ("torch_zip", "read"),
    "torchscript": ("torchscript", "read"),
    "pt2": ("pt2", "read"),
    "torch-legacy": ("torch_legacy", "read"),
    "torch-tar": ("torch_tar", "read"),
    "pickle": ("plain_pickle", "read"),
    "safetensors": ("safetensors_file", "read"),
    "hf-index": ("hf_index", "read"),
    "dcp": ("dcp", "read"),
    "dcp-safetensors": ("dcp_safetensors", "read"),
    "npy": ("numpy_files", "read_npy"),
    "npz": ("numpy_files", "read_npz"),
}


def reader_of(kind: Kind) -> Callable[[str], View]:
    """The function that reads a format."""
    module, name = _READERS[kind]
    found: Callable[[str], View] = getattr(import_module(f"holdtrue.formats.{module}"), name)
    return found


def detect_checkpoint(path: str) -> Detected:
    """The format of one checkpoint. Raises OpenError for a run, which holds several."""
    detected = detect(path)
    if detected.kind == "holdtrue-run":
        raise refuse(
            path,
            "run-not-checkpoint",
            "the directory holds checkpoints, it is none itself",
            f"it holds {detected.detail}",
            "give the path of one of these",
        )
    return detected


def read(path: str) -> View:
    """The checkpoint at a path, whatever wrote it. Raises OpenError or DamageError."""
    detected = detect_checkpoint(path)
    return reader_of(detected.kind)(detected.path)
