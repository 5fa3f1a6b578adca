import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdtrue.errors import DamageError
from holdtrue.formats.tensor_bytes import (
    read_box,
    read_piece,
    read_storage,
    read_tensor,
    tensor_chunks,
)
from holdtrue.formats.view import LazyTensor, Piece, Storage
from holdtrue.limits import override

NUMBERS = np.random.default_rng(0).integers(0, 256, 4096, np.uint8)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("bytes") / "data"
    path.write_bytes(b"head" + NUMBERS.tobytes())
    return str(path)


def storage(file, nbytes=4096, offset=4, **more):
    return Storage(key="s", file=file, offset=offset, nbytes=nbytes, **more)


def lazy(dtype, shape, stride, where, offset=0, **more):
    piece = Piece(start=(0,) * len(shape), shape=shape, storage=where, offset=offset, stride=stride)
    return LazyTensor(dtype=dtype, shape=shape, stride=stride, pieces=(piece,), **more)


def code(error):
    return error.value.report.findings[0].code


layouts = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), min_size=0, max_size=5).map(
    lambda pairs: (tuple(a for a, _ in pairs), tuple(b for _, b in pairs))
)


@given(
    layout=layouts,
    offset=st.integers(0, 8),
    dtype=st.sampled_from(
        ["uint8", "int16", "float32", "float64", "complex64", "complex128", "bfloat16"]
    ),
)
@settings(max_examples=400, deadline=None)
def test_any_stride_reads_what_torch_reads(file, layout, offset, dtype):
    shape, stride = layout
    kind = getattr(torch, dtype)
    flat = torch.from_numpy(NUMBERS.copy()).view(kind)
    wanted = torch.empty(shape, dtype=kind).copy_(flat.as_strided(shape, stride, offset))
    expected = wanted.reshape(-1).view(torch.uint8).numpy() if wanted.numel() else b""
    tensor = lazy(dtype, shape, stride, storage(file), offset)
    assert read_tensor(tensor).tobytes() == bytes(expected)
    with override(chunk_bytes=24):
        chunks = list(tensor_chunks(tensor))
    assert b"".join(c.tobytes() for c in chunks) == bytes(expected)
    assert all(len(c) <= max(24, kind.itemsize) for c in chunks)


def test_negative_strides(file):
    tensor = lazy("int16", (3, 4), (-1, 5), storage(file), 10)
    flat = NUMBERS.view("<i2")
    expected = np.lib.stride_tricks.as_strided(flat[10:], (3, 4), (-2, 10))
    assert read_tensor(tensor).tobytes() == expected.tobytes()


@pytest.mark.parametrize("rows_by_themselves", [False, True])
@pytest.mark.parametrize("stride", [(1024, 1), (1, 1024), (1024, 0), (1024, 2)])
def test_rows_far_apart_are_read_one_by_one(file, monkeypatch, rows_by_themselves, stride):
    import holdtrue.formats.tensor_bytes as module

    monkeypatch.setattr(module, "_ROW_GAP", 16 if rows_by_themselves else 1 << 30)
    read = []
    real = module._read_raw
    monkeypatch.setattr(module, "_read_raw", lambda s, a, n: read.append(n) or real(s, a, n))
    tensor = lazy("uint8", (4, 4), stride, storage(file), 3)
    expected = np.lib.stride_tricks.as_strided(NUMBERS[3:], (4, 4), stride)
    assert read_tensor(tensor).tobytes() == expected.tobytes()
    assert (sum(read) < 100) == rows_by_themselves


@pytest.mark.parametrize(
    ("dtype", "unit"),
    [
        ("float32", 4),
        ("float64", 8),
        ("int16", 2),
        ("complex64", 4),
        ("complex128", 8),
        ("uint8", 1),
    ],
)
def test_big_endian(file, dtype, unit):
    where = storage(file, big_endian=True, itemsize=unit)
    tensor = lazy(dtype, (3, 5), (1, 3), where, 2)
    swapped = NUMBERS.reshape(-1, unit)[:, ::-1].reshape(-1).view(np.dtype(dtype))
    expected = np.lib.stride_tricks.as_strided(
        swapped[2:], (3, 5), (swapped.itemsize, 3 * swapped.itemsize)
    )
    assert read_tensor(tensor).tobytes() == expected.tobytes()


def test_bytes_of_a_big_endian_storage_are_cut_after_swapping(file):
    where = storage(file, big_endian=True, itemsize=4)
    swapped = NUMBERS.reshape(-1, 4)[:, ::-1].reshape(-1)
    for start in range(9):
        for count in range(9):
            assert (
                read_storage(where, start, count).tobytes()
                == swapped[start : start + count].tobytes()
            )


def test_big_endian_storage_that_ends_within_a_number(file):
    where = storage(file, nbytes=10, big_endian=True, itemsize=4)
    assert len(read_storage(where, 0, 8)) == 8
    with pytest.raises(DamageError) as error:
        read_storage(where, 0, 10)
    assert code(error) == "bytes-missing"


def pack(data):
    engine = zlib.compressobj(6, zlib.DEFLATED, -15)
    return engine.compress(data) + engine.flush()


@pytest.fixture
def deflated(tmp_path):
    packed = pack(b"0123456789ab" + NUMBERS.tobytes())
    path = tmp_path / "packed"
    path.write_bytes(b"xyz" + packed + b"after")
    return Storage(
        key="d", file=str(path), offset=3, nbytes=4096, codec="deflate", stored=len(packed), skip=12
    )


def test_deflate(deflated):
    assert read_storage(deflated).tobytes() == NUMBERS.tobytes()
    assert read_storage(deflated, 100, 7).tobytes() == NUMBERS[100:107].tobytes()
    tensor = lazy("int32", (4, 8), (1, 4), deflated, 3)
    expected = np.lib.stride_tricks.as_strided(NUMBERS.view("<i4")[3:], (4, 8), (4, 16))
    assert read_tensor(tensor).tobytes() == expected.tobytes()
    with override(chunk_bytes=10):
        assert b"".join(c.tobytes() for c in tensor_chunks(tensor)) == expected.tobytes()


@pytest.mark.parametrize("claim", [4095, 4097, 1 << 40, 1 << 62])
def test_deflate_of_another_length(deflated, claim):
    from msgspec.structs import replace

    with pytest.raises(DamageError) as error:
        read_storage(replace(deflated, nbytes=claim))
    assert code(error) == "bytes-missing"


def test_deflate_damaged(deflated):
    path = Path(deflated.file)
    data = bytearray(path.read_bytes())
    data[3:40] = b"\xff" * 37
    path.write_bytes(bytes(data))
    with pytest.raises(DamageError) as error:
        read_storage(deflated)
    assert code(error) == "compressed-data-damaged"


def test_deflate_bomb_within_its_budget_is_refused_unread(deflated):
    with override(inflated_bytes=1000), pytest.raises(DamageError) as error:
        read_storage(deflated)
    assert "1,000 are present" in error.value.report.findings[0].why


@pytest.mark.parametrize(
    ("shape", "stride", "offset"),
    [
        ((4097,), (1,), 0),
        ((4096,), (1,), 1),
        ((2,), (4096,), 0),
        ((2, 2), (-1, 1), 0),
        ((1 << 62,), (1,), 0),
        ((3,), (1 << 61,), 0),
        ((1,), (1,), -1),
        ((1,), (1,), 1 << 62),
    ],
)
def test_out_of_range_is_a_finding(file, shape, stride, offset):
    tensor = lazy("uint8", shape, stride, storage(file), offset)
    with pytest.raises(DamageError) as error:
        read_tensor(tensor)
    assert code(error) in {"bytes-missing", "tensor-expanded"}
    with pytest.raises(DamageError):
        list(tensor_chunks(tensor))


def test_storage_longer_than_its_file_takes_no_memory(file):
    tensor = lazy("uint8", (1 << 50,), (1,), storage(file, nbytes=1 << 50))
    with pytest.raises(DamageError) as error:
        read_tensor(tensor)
    assert code(error) == "bytes-missing"


def test_file_that_is_gone(tmp_path):
    tensor = lazy("uint8", (3,), (1,), storage(str(tmp_path / "none")))
    with pytest.raises(DamageError) as error:
        read_tensor(tensor)
    assert code(error) == "file-unreadable"


def test_expanded_tensor_within_and_past_the_budget(file):
    tensor = lazy("float32", (1 << 18,), (0,), storage(file))
    assert read_tensor(tensor).tobytes() == NUMBERS[:4].tobytes() * (1 << 18)
    with override(expanded_bytes=1 << 19), pytest.raises(DamageError) as error:
        read_tensor(tensor)
    assert code(error) == "tensor-expanded"
    with override(expanded_bytes=1 << 19), pytest.raises(DamageError):
        next(tensor_chunks(tensor))


def box(start, shape, where, offset, stride):
    return Piece(start=start, shape=shape, storage=where, offset=offset, stride=stride)


@given(
    rows=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    columns=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_several_pieces_and_boxes_of_them(file, rows, columns, data):
    where = storage(file)
    height, width = sum(rows), sum(columns)
    whole = np.zeros((height, width), "<i2")
    numbers = NUMBERS.view("<i2")
    pieces, top, at = [], 0, 0
    for r in rows:
        left = 0
        for c in columns:
            stride = data.draw(st.sampled_from([(c, 1), (1, r)]))
            pieces.append(box((top, left), (r, c), where, at, stride))
            part = np.lib.stride_tricks.as_strided(
                numbers[at:], (r, c), tuple(2 * s for s in stride)
            )
            whole[top : top + r, left : left + c] = part
            at += r * c
            left += c
        top += r
    tensor = LazyTensor(
        dtype="int16",
        shape=whole.shape,
        stride=(width, 1),
        pieces=tuple(data.draw(st.permutations(pieces))),
    )
    assert read_tensor(tensor).tobytes() == whole.tobytes()
    y, x = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    h, w = data.draw(st.integers(1, height - y)), data.draw(st.integers(1, width - x))
    assert read_box(tensor, (y, x), (h, w)).tobytes() == whole[y : y + h, x : x + w].tobytes()
    with override(chunk_bytes=6):
        assert b"".join(c.tobytes() for c in tensor_chunks(tensor)) == whole.tobytes()
    with pytest.raises(DamageError) as error:
        read_tensor(
            LazyTensor(
                dtype="int16", shape=(height + 1, width), stride=(width, 1), pieces=tensor.pieces
            )
        )
    assert code(error) == "tensor-incomplete"


def test_more_axes_than_numpy_1_knows(file):
    shape = (2, *(1,) * 60, 2, 1)
    stride = (2, *(7,) * 60, 1, 3)
    assert (
        read_tensor(lazy("uint8", shape, stride, storage(file))).tobytes() == NUMBERS[:4].tobytes()
    )
    halves = tuple(
        box((i, *(0,) * 62), (1, *shape[1:]), storage(file), 2 * i, stride) for i in range(2)
    )
    two = LazyTensor(dtype="uint8", shape=shape, stride=stride, pieces=halves)
    assert read_tensor(two).tobytes() == NUMBERS[:4].tobytes()


def test_odd_element_sizes_and_none(file):
    assert read_tensor(lazy("V12", (3,), (2,), storage(file), numpy="|V12")).tobytes() == b"".join(
        NUMBERS[i : i + 12].tobytes() for i in (0, 24, 48)
    )
    assert len(read_tensor(lazy("<U0", (3,), (1,), storage(file), numpy="<U0"))) == 0
    assert list(tensor_chunks(lazy("<U0", (0,), (1,), storage(file), numpy="<U0"))) == []


def test_inline_bytes():
    where = Storage(key="i", file="", offset=0, nbytes=8, inline=bytes(range(8)))
    assert read_tensor(lazy("uint8", (2, 2), (1, 4), where)).tobytes() == bytes([0, 4, 1, 5])
    longer = Storage(key="i", file="", offset=0, nbytes=9, inline=bytes(8))
    with pytest.raises(DamageError):
        read_storage(longer)


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
@pytest.mark.parametrize("bits", [("conj",), ("neg",), ("conj", "neg")])
def test_lazy_bits_are_carried_out(file, dtype, bits):
    kind = getattr(torch, dtype)
    flat = (
        torch.from_numpy(np.arange(32, dtype="f8")).view(torch.float64).to(torch.float32)
        if dtype == "complex64"
        else torch.arange(32, dtype=torch.float64)
    )
    path = Path(file).with_name("complex")
    path.write_bytes(flat.numpy().tobytes())
    wanted = flat.view(kind)
    for bit in bits:
        wanted = wanted.conj() if bit == "conj" else torch._neg_view(wanted)
    expected = wanted.resolve_conj().resolve_neg().contiguous()
    count = len(expected)
    where = Storage(key="c", file=str(path), offset=0, nbytes=path.stat().st_size)
    tensor = lazy(dtype, (count,), (1,), where, lazy_bits=bits)
    got = torch.from_numpy(read_tensor(tensor).copy()).view(kind)
    assert torch.equal(got, expected)


def test_layouts_without_bytes_of_their_own():
    with pytest.raises(ValueError, match="sparse_coo"):
        read_tensor(LazyTensor(dtype="float32", shape=(2, 2), stride=(), layout="sparse_coo"))
    empty = LazyTensor(dtype="float32", shape=(0, 2), stride=(2, 1))
    assert len(read_tensor(empty)) == 0


def test_read_piece_of_nothing(file):
    assert len(read_piece(box((0,), (0,), storage(file), 1 << 62, (1,)), 4)) == 0
