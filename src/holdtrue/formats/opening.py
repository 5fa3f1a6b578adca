"""A path to a View: the format is told by content, and its reader is called."""

from collections.abc import Callable

from holdtrue.formats import (
    checkpoint_directory,
    dcp,
    dcp_safetensors,
    hf_index,
    numpy_files,
    plain_pickle,
    pt2,
    safetensors_file,
    torch_legacy,
    torch_tar,
    torch_zip,
    torchscript,
)
from holdtrue.formats.detect import Kind, detect
from holdtrue.formats.source import refuse
from holdtrue.formats.view import View

READERS: dict[Kind, Callable[[str], View]] = {
    "holdtrue": checkpoint_directory.read,
    "torch-zip": torch_zip.read,
    "torchscript": torchscript.read,
    "pt2": pt2.read,
    "torch-legacy": torch_legacy.read,
    "torch-tar": torch_tar.read,
    "pickle": plain_pickle.read,
    "safetensors": safetensors_file.read,
    "hf-index": hf_index.read,
    "dcp": dcp.read,
    "dcp-safetensors": dcp_safetensors.read,
    "npy": numpy_files.read_npy,
    "npz": numpy_files.read_npz,
}


def read(path: str) -> View:
    """The checkpoint at a path, whatever wrote it. Raises OpenError or DamageError."""
    detected = detect(path)
    if detected.kind == "holdtrue-run":
        raise refuse(
            path,
            "run-not-checkpoint",
            "the directory is a run of several checkpoints",
            f"it holds {detected.detail}",
            f"say which: {path}@latest, {path}@best, or the directory of one step",
        )
    return READERS[detected.kind](detected.path)
