import io
import zipfile

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from corpus import CORPUS, needs_corpus
from msgspec.structs import replace
from safetensors.torch import save_file

from holdtrue.formats.opening import read
from holdtrue.formats.verifying import verify_view
from holdtrue.formats.view import View
from holdtrue.limits import override

STATE = {f"w{i}": torch.randn(50, 3) for i in range(4)} | {"step": 7}
TENSORS = {k: v for k, v in STATE.items() if k != "step"}


def write(path, kind):
    if kind == "torch-zip":
        torch.save(STATE, path)
    elif kind == "torch-legacy":
        torch.save(STATE, path, _use_new_zipfile_serialization=False)
    elif kind == "safetensors":
        save_file(TENSORS, path)
    elif kind == "npz":
        with path.open("wb") as file:
            np.savez_compressed(file, **{k: v.numpy() for k, v in TENSORS.items()})
    else:
        with path.open("wb") as file:
            np.save(file, np.arange(300.0))


def codes(report):
    return [finding.code for finding in report.findings]


@pytest.mark.parametrize("kind", ["torch-zip", "torch-legacy", "safetensors", "npz", "npy"])
def test_whole_files_pass_and_say_what_is_not_proven(tmp_path, kind):
    path = tmp_path / "f"
    write(path, kind)
    seen = []
    report = verify_view(read(str(path)), seen.append)
    assert report.ok
    assert codes(report) == []
    assert any("signed" in said for said in report.not_checked)
    proven = kind in ("torch-zip", "npz")
    assert any("no checksum" in said for said in report.not_checked) != proven
    if proven:
        assert sum(seen) >= sum(t.nbytes for t in TENSORS.values())


@pytest.mark.parametrize("kind", ["torch-zip", "npz"])
def test_a_flipped_bit_in_any_record_is_found(tmp_path, kind):
    path = tmp_path / "f"
    write(path, kind)
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        records = [info for info in archive.infolist() if info.file_size]
    for info in records:
        damaged = bytearray(data)
        at = (
            info.header_offset
            + 30
            + int.from_bytes(data[info.header_offset + 26 : info.header_offset + 28], "little")
            + int.from_bytes(data[info.header_offset + 28 : info.header_offset + 30], "little")
        )
        damaged[at + info.compress_size // 2] ^= 0x10
        path.write_bytes(bytes(damaged))
        try:
            report = verify_view(read(str(path)))
        except Exception as error:
            report = error.report
        assert not report.ok, info.filename


def test_records_without_a_crc_are_counted_as_not_checked(tmp_path):
    path = tmp_path / "f"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, path)
    finally:
        torch.serialization.set_crc32_options(True)
    view = read(str(path))
    unproven = [s for t in view.tensors.values() for s in t.pieces if s.storage.crc32 is None]
    report = verify_view(view)
    assert report.ok
    if unproven:
        assert any("without a CRC" in said for said in report.not_checked)


def test_chunks_of_a_distributed_checkpoint_are_checked(tmp_path):
    dcp.save({"a": torch.randn(100)}, storage_writer=dcp.FileSystemWriter(tmp_path), no_dist=True)
    view = read(str(tmp_path))
    assert codes(verify_view(view)) == []
    storage = view.tensors["a"].pieces[0].storage
    shard = tmp_path / "__0_0.distcp"
    data = bytearray(shard.read_bytes())
    data[storage.offset + 17] ^= 1
    shard.write_bytes(bytes(data))
    (finding,) = verify_view(read(str(tmp_path))).findings
    assert finding.code == "crc-mismatch"
    assert "__0_0.distcp" in finding.where


@pytest.mark.parametrize("kind", ["torch-zip", "torch-legacy", "safetensors", "npz"])
def test_a_file_cut_after_it_was_opened(tmp_path, kind):
    path = tmp_path / "f"
    write(path, kind)
    view = read(str(path))
    path.write_bytes(path.read_bytes()[:1000])
    report = verify_view(view)
    assert not report.ok
    path.unlink()
    assert not verify_view(view).ok


def test_sizes_that_do_not_fit(tmp_path):
    path = tmp_path / "f"
    write(path, "safetensors")
    view = read(str(path))
    tensor = view.tensors["w0"]
    piece = tensor.pieces[0]
    for changed, code in (
        (replace(tensor, pieces=(replace(piece, offset=1),)), "tensor-past-storage"),
        (replace(tensor, pieces=(replace(piece, stride=(-1, 1)),)), "tensor-past-storage"),
        (replace(tensor, shape=(51, 3)), "tensor-incomplete"),
        (
            replace(
                tensor, pieces=(replace(piece, storage=replace(piece.storage, nbytes=1 << 60)),)
            ),
            "bytes-missing",
        ),
        (
            replace(
                tensor, pieces=(replace(piece, storage=replace(piece.storage, digest="0" * 32)),)
            ),
            "digest-mismatch",
        ),
    ):
        bad = View(path=str(path), format="safetensors", about={}, tree={}, tensors={"w0": changed})
        assert codes(verify_view(bad)) == [code]


def test_components_are_checked_too(tmp_path):
    path = tmp_path / "f"
    torch.save({"s": torch.eye(50).to_sparse()}, path)
    view = read(str(path))
    data = bytearray(path.read_bytes())
    data[view.tensors["s"].components["values"].pieces[0].storage.offset + 3] ^= 1
    path.write_bytes(bytes(data))
    assert codes(verify_view(read(str(path)))) == ["crc-mismatch"]


def test_bytes_are_streamed(tmp_path):
    path = tmp_path / "f"
    write(path, "torch-zip")
    seen = []
    with override(chunk_bytes=100):
        verify_view(read(str(path)), seen.append)
    assert max(seen) <= 100
    buffer = io.BytesIO()
    np.savez_compressed(buffer, a=np.zeros(5_000_000, np.uint8))
    path.write_bytes(buffer.getvalue())
    with override(chunk_bytes=1000):
        assert verify_view(read(str(path)), seen.append).ok
    assert max(seen) <= 1000


@needs_corpus
@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("base.pt", []),
        ("legacy.pt", []),
        ("bitflip_in_tensor.pt", ["crc-mismatch"]),
        ("zip_crc_wrong_data_pkl.pt", ["crc-mismatch"]),
        ("zip_local_name_differs.pt", ["zip-name-mismatch"]),
    ],
)
def test_damaged_corpus(name, found):
    assert codes(verify_view(read(str(CORPUS / "damaged" / name)))) == found


@needs_corpus
def test_short_storage_of_the_corpus():
    report = verify_view(read(str(CORPUS / "damaged/zip_storage_short_16B.pt")))
    assert not report.ok
    assert "storage-size-mismatch" in codes(report)
