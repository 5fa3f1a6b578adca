"""Files that others wrote and published in packages: read, and never unpickled."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import pytest

import holdtrue

# (package, file, format, tensors, bytes, sha256 over names and bytes in order)
FILES = [
    ("DISTS_pytorch", "weights.pt", "torch-legacy", 2, 11_800,
     "7ee9a2e50edf3e434be2256d5c304452"),
    ("tad_dftd3", "reference-c6.pt", "torch-zip", 1, 4_239_872,
     "147a373dcd12903ec5a8042dd6a9eac0"),
    ("fracast", "weights/model.safetensors", "safetensors", 47, 340_004,
     "f41d2cd2a7a29b15467c6f0884cafee2"),
    ("fracast", "weights/model.int8.safetensors", "safetensors", 67, 106_828,
     "74ca9068c9637b02c0def871c2b04069"),
]  # fmt: skip


@pytest.mark.parametrize(("package", "name", "kind", "count", "nbytes", "digest"), FILES)
def test_a_published_file(package, name, kind, count, nbytes, digest, figure):
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{package} is not installed")
    path = Path(next(iter(spec.submodule_search_locations))) / name
    checkpoint = holdtrue.open(path)
    assert checkpoint.format == kind
    assert len(checkpoint.tensors) == count
    assert sum(t.nbytes for t in checkpoint.tensors.values()) == nbytes
    found = hashlib.sha256()
    for tensor_name, tensor in checkpoint.tensors.items():
        found.update(tensor_name.encode())
        found.update(tensor.numpy().tobytes())
    assert found.hexdigest()[:32] == digest
    assert holdtrue.verify(path).ok
    figure("published files of others read")
