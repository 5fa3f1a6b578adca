"""Files that were cut, overwritten or never finished; and files larger than they need be."""

import json
import struct
import zipfile
from typing import Any

import numpy as np
import torch

from benchmarks.diagnosis.broken import At, Broken, Tell, variants
from benchmarks.diagnosis.checks import holds, written
from benchmarks.diagnosis.files import extent, flipped, patched, replaced, rewritten, text
from benchmarks.diagnosis.models import ConvNet, any_model, lived, sequential, state, steps

_CUT = "central directory|truncat|incomplete|cut off|shorter|unexpected EOF|ends before"
_AGAIN = "salvage|fetch|again|earlier|previous|before|from its source|other copy"
_ROT = "checksum|CRC|corrupt|differs from"


def _large(at: At) -> dict[str, torch.Tensor]:
    """Enough bytes that cutting a part leaves whole tensors."""
    width = at.rng.choice((32, 48))
    return state(lived(ConvNet(width, depth=3)))


def _safetensors(at: At, tensors: dict[str, torch.Tensor]) -> Any:
    from safetensors.torch import save_file

    path = at.path(".safetensors")
    save_file(tensors, path)
    return path


@variants(0.15, 0.5, 0.9, 0.995)
def zip_cut_short(at: At, part: float) -> Broken:
    truth = _large(at)
    path = at.save(truth)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    return Broken(
        path=path, finds="zip-no-directory", place=path.name, cause=_CUT, cure=_AGAIN,
        mend=written(truth, least=1),
    )  # fmt: skip


def small_zip_cut_short(at: At) -> Broken:
    truth = state(lived(sequential(at.rng.randint(4, 9))))
    path = at.save(truth)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    return Broken(
        path=path, finds="zip-no-directory", place=path.name, cause=_CUT, cure=_AGAIN,
        mend=written(truth, least=1),
    )  # fmt: skip


@variants(0.6, 0.9)
def legacy_cut_short(at: At, part: float) -> Broken:
    truth = _large(at)
    path = at.save(truth, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    return Broken(
        path=path, finds="legacy-truncated", place=path.name, cause=_CUT, cure=_AGAIN,
        mend=written(truth, least=1),
    )  # fmt: skip


@variants(0.6, 0.9)
def safetensors_cut_short(at: At, part: float) -> Broken:
    truth = _large(at)
    path = _safetensors(at, truth)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    return Broken(
        path=path, finds=("file-truncated", "safetensors-header-damaged"), place=path.name,
        cause=_CUT + "|not fully covered|exceeds data", cure=_AGAIN, mend=written(truth, least=1),
    )  # fmt: skip


@variants(".npz", ".npy")
def numpy_cut_short(at: At, suffix: str) -> Broken:
    path = at.path(suffix)
    array = np.arange(4000.0)
    np.savez(path, a=array, b=array + 1) if suffix == ".npz" else np.save(path, array)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    return Broken(
        path=path, finds=("zip-no-directory", "npy-damaged", "file-truncated"), place=path.name,
        cause=_CUT, cure=_AGAIN, mend=Tell(_AGAIN),
    )  # fmt: skip


@variants("zip", "TorchScript", "tensor in the middle")
def bit_rot(at: At, kind: str) -> Broken:
    """One bit of one tensor: loads without a word."""
    truth = _large(at)
    if kind == "TorchScript":
        model = ConvNet(16).eval()
        path = at.path()
        torch.jit.save(torch.jit.trace(model, torch.ones(1, 3, 8, 8)), path)
    else:
        path = at.save(truth)
    with zipfile.ZipFile(path) as archive:
        records = [i.filename.split("/", 1)[1] for i in archive.infolist() if i.file_size > 256]
    records = [r for r in records if "data/" in r or "constants/" in r]
    begin, end = extent(path, at.rng.choice(records))
    flipped(path, at.rng.randrange(begin, end))
    return Broken(
        path=path, finds="crc-mismatch", place="/", deep=True, cause=_ROT, cure=_AGAIN,
        mend=Tell(_AGAIN + "|digest|other copy"),
    )  # fmt: skip


def bit_rot_in_the_pickle(at: At) -> Broken:
    path = at.save(state(lived(any_model(at)())))
    begin, end = extent(path, "data.pkl")
    flipped(path, at.rng.randrange(begin + 20, end - 2))
    return Broken(
        path=path, finds=("crc-mismatch", "damage"), place="data.pkl", deep=True, cause=_ROT,
        cure=_AGAIN, mend=Tell(_AGAIN + "|damage|other copy"),
    )  # fmt: skip


@variants("zip", "safetensors", "legacy")
def lost_page(at: At, kind: str) -> Broken:
    """Two pages of zeros within a tensor: what a crash leaves of a file."""
    big = torch.randn(at.rng.choice((128, 160)), 64)
    truth = {at.word(): torch.randn(16), "big.weight": big, at.word(3): torch.randn(24)}
    if kind == "safetensors":
        path = _safetensors(at, truth)
    else:
        path = at.save(truth, _use_new_zipfile_serialization=kind == "zip")
    at_byte = path.read_bytes().find(big.numpy().tobytes()) + 4096
    patched(path, at_byte - at_byte % 4096 + 4096, bytes(8192))
    return Broken(
        path=path, finds="crc-mismatch" if kind == "zip" else "lost-page",
        place=("big.weight", "data/"), deep=True, cause=_ROT + "|zeros", cure=_AGAIN,
        mend=Tell(_AGAIN + "|other copy"),
    )  # fmt: skip


@variants("empty", "zeros", "zero head", "zero tail")
def never_written(at: At, how: str) -> Broken:
    """Space was reserved, and the data never reached the disk."""
    data = bytearray(at.save(_large(at)).read_bytes())
    if how == "zero head":
        data[:8192] = bytes(8192)
    elif how == "zero tail":
        cut = len(data) * 2 // 3
        data[cut:] = bytes(len(data) - cut)
    else:
        data = bytearray(0 if how == "empty" else len(data))
    path = at.write(bytes(data))
    finds = {"empty": "file-empty", "zero tail": "damage"}.get(how, "file-zeroed")
    return Broken(
        path=path, finds=finds, place=path.name, cause="empty|0 bytes|zero|Ran out of input",
        cure=_AGAIN, mend=Tell(_AGAIN),
    )  # fmt: skip


@variants((100, "zip"), (100_000, "zip"), (64, "safetensors"))
def something_follows(at: At, count: int, kind: str) -> Broken:
    truth = _large(at)
    path = at.save(truth) if kind == "zip" else _safetensors(at, truth)
    with path.open("ab") as file:
        file.write(at.rng.randbytes(count))
    return Broken(
        path=path,
        finds=("trailing-bytes", "file-longer")
        if kind == "zip"
        else ("trailing-bytes", "safetensors-header-damaged"),
        place=path.name, cause="trailing|after the end|extra bytes|not fully covered",
        cure="cut|salvage|convert", mend=written(truth),
    )  # fmt: skip


def short_file_over_a_long_one(at: At) -> Broken:
    """Rewritten in place without truncating: a new head, and the old tail."""
    long = at.save(_large(at)).read_bytes()
    short = at.save(state(lived(sequential()))).read_bytes()
    path = at.write(short + long[len(short) :])
    return Broken(
        path=path, finds="damage", place=path.name, cause="overwrit|two files|other file",
        cure=_AGAIN, mend=Tell(_AGAIN), deep=True,
    )  # fmt: skip


def two_ranks_wrote_one_file(at: At) -> Broken:
    """Blocks of two files of one size, as two processes leave them."""
    tensors = _large(at)
    later = {n: t + 1 for n, t in tensors.items()}
    path, pieces = at.path(), []
    for written_by_one in (tensors, later):
        torch.save(written_by_one, path)
        pieces.append(path.read_bytes())
    size = len(pieces[0])
    blocks = (pieces[i % 3 == 1][i * 4096 : (i + 1) * 4096] for i in range(size // 4096 + 1))
    path.write_bytes(b"".join(blocks))
    return Broken(
        path=path, finds=("damage", "crc-mismatch"), place=path.name,
        cause="rank|two (processes|writers)", cure=_AGAIN + "|one writer|rank",
        mend=Tell(_AGAIN + "|rank|writer|whole"), deep=True,
    )  # fmt: skip


@variants("shorter", "missing")
def storage_of_a_zip(at: At, how: str) -> Broken:
    """The archive is whole; one of its storages is not."""
    truth = _large(at)
    path = at.save(truth)
    with zipfile.ZipFile(path) as archive:
        names = [i.filename.split("/", 1)[1] for i in archive.infolist() if i.file_size > 256]
    record = at.rng.choice([n for n in names if n.startswith("data/")])
    rewritten(path, record, (lambda data: data[:-16]) if how == "shorter" else (lambda _: None))
    return Broken(
        path=path, finds=("storage-size-mismatch", "storage-missing"), place=record,
        cause="size|missing|locating file|not found", cure=_AGAIN, mend=written(truth, least=3),
    )  # fmt: skip


@variants("length", "JSON", "overlap")
def safetensors_header(at: At, how: str) -> Broken:
    truth = _large(at)
    path = _safetensors(at, truth)
    data = bytearray(path.read_bytes())
    (size,) = struct.unpack_from("<Q", data)
    if how == "length":
        struct.pack_into("<Q", data, 0, size + at.rng.randint(1, 200) * 10**9)
    elif how == "JSON":
        data[8 + at.rng.randrange(10, 60)] = 0x1F
    else:
        header = json.loads(bytes(data[8 : 8 + size]))
        names = [n for n in header if n != "__metadata__"]
        header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]
        packed = json.dumps(header).encode()
        data = bytearray(struct.pack("<Q", len(packed)) + packed + bytes(data[8 + size :]))
    path.write_bytes(bytes(data))
    return Broken(
        path=path, finds="safetensors-header-damaged", place=path.name,
        cause="header|offset|metadata", cure=_AGAIN, mend=Tell(_AGAIN),
    )  # fmt: skip


def legacy_size_field(at: At) -> Broken:
    """The count before a storage's bytes is nonsense: "storage has wrong size: expected -4…"."""
    truth = _large(at)
    path = at.save(truth, _use_new_zipfile_serialization=False)
    data = bytearray(path.read_bytes())
    tensor = truth["layers.1.conv.weight"]
    where = bytes(data).find(tensor.numpy().tobytes()) - 8
    struct.pack_into("<q", data, where, -at.rng.randint(10, 10**6))
    path.write_bytes(bytes(data))
    return Broken(
        path=path, finds="damage", place=path.name, cause="wrong size|size", cure=_AGAIN,
        mend=Tell(_AGAIN),
    )  # fmt: skip


@variants("cuda:0", "cuda:5", "mps:0", "npu:1", "xla:0")
def saved_on_another_device(at: At, device: str) -> Broken:
    make = any_model(at)
    truth = state(lived(make()))
    path = replaced(at.save(truth), (text("cpu"), text(device)))
    return Broken(
        path=path, finds="device-tags", place=path.name, mend=holds(truth),
        targets={"model": make()}, cause=device.split(":")[0], cure="map_location",
    )  # fmt: skip


@variants("slice", "row of each")
def view_saved_with_its_storage(at: At, how: str) -> Broken:
    """A few numbers were meant; all that they are a view of was written."""
    base = torch.randn(4000, 40)
    key = at.word(3)
    truth = {key: base[: at.rng.randint(2, 9)] if how == "slice" else base[:, 1]}
    return Broken(
        path=at.save({**truth, "b": torch.ones(3)}), finds="waste", place=(key, "data/"),
        mend=written(truth), cause="larger|storage|waste", cure="clone|convert",
    )  # fmt: skip


def adam_within_a_release(at: At) -> Broken:
    """Three times the size of its model: the optimizer's moments are in the file."""
    model = lived(ConvNet(32))
    optimizer = torch.optim.Adam(model.parameters())
    steps(model, optimizer)
    truth = state(model)
    path = at.save({"model": truth, "optimizer": optimizer.state_dict(), "epoch": 9})
    return Broken(
        path=path, finds=("waste", "larger-than-weights"), place=("optimizer", path.name),
        mend=written(truth), cause="optimizer.*(bytes|MB|MiB|size)|3",
        cure="export|convert|weights only",
    )  # fmt: skip


@variants("code", "data.pkl")
def torchscript_damaged(at: At, which: str) -> Broken:
    path = at.path()
    torch.jit.save(torch.jit.trace(ConvNet(16).eval(), torch.ones(1, 3, 8, 8)), path)
    if which == "code":
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 3 // 4])
    else:
        begin, _ = extent(path, "data.pkl")
        patched(path, begin + 8, bytes(64))
    return Broken(
        path=path, finds="damage", place=path.name, cause=_CUT + "|" + _ROT, cure=_AGAIN,
        mend=Tell(_AGAIN + "|damage"), deep=True,
    )  # fmt: skip
