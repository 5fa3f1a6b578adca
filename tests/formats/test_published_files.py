"""Checkpoints that others wrote and published, against what an inert unpickler saw in them."""

import hashlib
import json
from collections import Counter

import pytest
from corpus import CORPUS, needs_corpus

from holdtrue.errors import HoldtrueError
from holdtrue.formats import torch_legacy, torch_zip, torchscript
from holdtrue.formats.tensor_bytes import read_tensor
from holdtrue.formats.view import View

pytestmark = needs_corpus

EXPECTED = sorted((CORPUS / "expected").glob("*.json")) if CORPUS.is_dir() else []
TORCH = [path for path in EXPECTED if "safetensors" not in path.name]


def read(path: str, container: str) -> View:
    if path.endswith(".script.dat"):
        return torchscript.read(path)
    return (torch_zip if container == "zip" else torch_legacy).read(path)


@pytest.mark.parametrize("expected", TORCH, ids=lambda path: path.name)
def test_as_expected(expected, figure) -> None:
    said = json.loads(expected.read_text())
    path = str(CORPUS / "weights" / said["path"])
    if "oracle_error" in said:
        with pytest.raises(HoldtrueError):
            torch_zip.read(path)
        return
    view = read(path, said["container"])
    assert not view.findings
    found = {name: t for name, t in view.tensors.items() if t.numpy is None}
    assert len(found) == len(said["tensors"])
    for want, (name, tensor) in zip(said["tensors"], found.items(), strict=True):
        shown = name.removeprefix("module/").replace("/", ".")
        assert shown in (want["path"], want["path"].strip("[]"))
        assert tensor.dtype == want["dtype"]
        assert list(tensor.shape) == want["shape"]
        assert list(tensor.stride) == want["stride"]
        assert tensor.device == want["loc"]
        assert tensor.pieces[0].offset == want["offset"]
        assert tensor.pieces[0].storage.key.rpartition("/")[2] == want["key"]
        assert hashlib.sha256(read_tensor(tensor).tobytes()).hexdigest() == want["sha256"]
        figure(f"published files: {view.format}, {tensor.dtype} tensors as expected")
    figure("published files read")
    named = {op.name for op in view.about["would_run"]}
    known = {name.replace(" ", ".") for name in said["globals"]}
    assert {name.rpartition(".")[2] for name in named} <= {
        part for name in known for part in name.split(".")}  # fmt: skip


DAMAGED = {
    "base.pt": [], "legacy.pt": [], "bitflip_in_tensor.pt": [], "zip_byteorder_says_big.pt": [],
    "git_lfs_pointer.pt": ["zip-no-directory"], "html_saved_as.pt": ["zip-no-directory"],
    "trunc_50pct.pt": ["zip-no-directory"], "zeros_full_length.pt": ["zip-no-directory"],
    "zip_crc_wrong_data_pkl.pt": ["crc-mismatch"],
    "zip_local_name_differs.pt": ["zip-name-mismatch"],
    "zip_storage_short_16B.pt": ["storage-size-mismatch", "tensor-past-storage"],
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_named(name: str) -> None:
    reader = torch_legacy if name == "legacy.pt" else torch_zip
    try:
        findings = reader.read(str(CORPUS / "damaged" / name)).findings
    except HoldtrueError as error:
        findings = error.report.findings
    assert [finding.code for finding in findings] == DAMAGED[name]


def test_salvage_of_half_a_file() -> None:
    whole = torch_zip.read(str(CORPUS / "damaged" / "base.pt"))
    half = torch_zip.salvage(str(CORPUS / "damaged" / "trunc_50pct.pt"))
    assert list(half.tensors) == list(whole.tensors)
    codes = Counter(finding.code for finding in half.findings)
    assert codes["zip-no-directory"] == 1
    assert codes["storage-missing"] >= 1
    kept = [n for n, t in half.tensors.items() if t.pieces[0].storage.nbytes]
    for name in kept:
        assert (read_tensor(half.tensors[name]) == read_tensor(whole.tensors[name])).all()
