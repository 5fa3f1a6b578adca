"""The figures of tensors that differ, against references reckoned with torch and NumPy at once."""

import math
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

import holdtrue
from holdtrue.doctor import side_by_side
from holdtrue.doctor.elements import decoder
from holdtrue.doctor.tensor_difference import measure, same_bytes
from holdtrue.formats.opening import read
from holdtrue.formats.view import LazyTensor
from holdtrue.limits import MIB, override

NAMES = [
    "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2",
    "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "complex64", "complex128",
    "complex32", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64", "bool",
]  # fmt: skip
PLAIN = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool",
         "float8_e4m3fn", "complex64", "complex128"]  # fmt: skip


def wide(tensor):
    """The values as float64 or complex128, by torch."""
    if tensor.dtype.is_complex:
        return tensor.to(torch.complex128).numpy().reshape(-1)
    return tensor.to(torch.float64).numpy().reshape(-1)


def reference(a, b):
    x, y = wide(a), wide(b)
    known = ~(np.isnan(x) | np.isnan(y))
    with np.errstate(all="ignore"):
        x, y = np.where(known, x, 0), np.where(known, y, 0)
        apart = np.where(x == y, 0, np.abs(x - y))
        apart = np.where(np.isnan(apart), np.inf, apart)
        size = np.maximum(np.abs(x), np.abs(y))
        relative = np.where(apart > 0, np.where(np.isinf(apart), np.inf, apart / size), 0)
        norms = np.linalg.norm(x) * np.linalg.norm(y)
        cosine = (x * y.conj()).real.sum() / norms
    return known, apart[known], relative[known], cosine


def bits(tensor):
    if not tensor.numel():
        return b""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def random_tensor(dtype, shape, seed):
    """Any bits at all: NaN with payloads, infinities, denormals."""
    kind = getattr(torch, dtype)
    count = math.prod(shape)
    chance = np.random.default_rng(seed)
    if not count:
        return torch.empty(shape, dtype=kind)
    if dtype == "bool":
        return torch.from_numpy(chance.integers(0, 2, count).astype(bool)).reshape(shape)
    raw = torch.from_numpy(chance.integers(0, 256, count * kind.itemsize, np.uint8))
    return raw.view(kind).reshape(shape)


def moderate(dtype, shape, seed):
    """Numbers that no sum overflows with."""
    chance = np.random.default_rng(seed)
    numbers = torch.from_numpy(np.asarray(chance.normal(size=shape) * 8))
    return (numbers > 0) if dtype == "bool" else numbers.to(getattr(torch, dtype))


def differ(tmp_path, a, b, **limits):
    torch.save({"t": a}, tmp_path / "a.pt")
    torch.save({"t": b}, tmp_path / "b.pt")
    with override(**limits):
        return holdtrue.diff(tmp_path / "a.pt", tmp_path / "b.pt")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("numbers")


@pytest.mark.parametrize("dtype", NAMES)
def test_every_code_decodes_to_what_torch_says(dtype, place, figure):
    kind = getattr(torch, dtype)
    tensor = torch.arange(256, dtype=torch.uint8)
    if kind.itemsize > 1:
        tensor = random_tensor("uint8", (4096 * kind.itemsize,), 3)
    tensor = (tensor > 100) if dtype == "bool" else tensor.view(kind)
    torch.save(tensor, place / "codes.pt")
    lazy = read(str(place / "codes.pt")).tree
    with np.errstate(invalid="ignore"):
        found = decoder(lazy)(np.frombuffer(bits(tensor), np.uint8)).astype(wide(tensor).dtype)
    assert found.tolist() == pytest.approx(wide(tensor).tolist(), nan_ok=True, abs=0, rel=0)
    figure("diff: dtypes decoded as torch does")


@given(
    dtype=st.sampled_from(NAMES),
    shape=st.lists(st.integers(0, 5), max_size=3).map(tuple),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), max_size=6),
    chunk=st.integers(1, 64),
    seed=st.integers(0, 99),
)
@settings(max_examples=300, deadline=None)
def test_changed_bits_are_counted_exactly(place, dtype, shape, changes, chunk, seed):
    a = random_tensor(dtype, shape, seed)
    raw = bytearray(bits(a))
    for at, flip in changes if raw else ():
        raw[at % len(raw)] ^= 1 if dtype == "bool" else flip
    b = a.clone()
    if raw:
        b = torch.frombuffer(raw, dtype=torch.uint8).view(a.dtype).reshape(shape)
    width = a.element_size()
    before = bits(a)
    expected = sum(
        before[at : at + width] != raw[at : at + width] for at in range(0, len(raw), width)
    )
    found = differ(place, a, b, chunk_bytes=chunk)
    assert found.equal == (expected == 0)
    if expected:
        (row,) = found.changed
        assert row.what == ("values",)
        assert row.numbers.differing == expected
        assert row.numbers.elements == a.numel()
        assert row.numbers.nan_a == int(np.isnan(wide(a)).sum())
        assert row.numbers.nan_b == int(np.isnan(wide(b)).sum())


@given(
    kinds=st.tuples(st.sampled_from(PLAIN), st.sampled_from(PLAIN)),
    shape=st.lists(st.integers(1, 6), max_size=3).map(tuple),
    chunk=st.one_of(st.integers(1, 64), st.just(1 << 20)),
    seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)),
    bad=st.lists(st.tuples(st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan]),
                           st.integers(0, 500), st.booleans()), max_size=3),
    strided=st.booleans(),
)  # fmt: skip
@settings(max_examples=400, deadline=None)
def test_the_figures_are_those_of_float64(place, kinds, shape, chunk, seeds, bad, strided):
    sides = [moderate(kind, shape, seed) for kind, seed in zip(kinds, seeds)]
    for value, at, first in bad:
        side = sides[0 if first else 1]
        if side.dtype.is_floating_point or side.dtype.is_complex:
            flat = np.array(wide(side))
            flat[at % len(flat)] = value
            sides[0 if first else 1] = torch.from_numpy(flat).to(side.dtype).reshape(shape)
    a, b = sides
    if strided and b.dim():  # the same numbers in another order of memory
        axes = tuple(reversed(range(b.dim())))
        b = b.permute(axes).contiguous().permute(axes)
    known, apart, relative, cosine = reference(a, b)
    found = differ(place, a, b, chunk_bytes=chunk)
    if a.dtype == b.dtype and bits(a) == bits(b):
        assert found.equal
        return
    (row,) = found.changed
    numbers = row.numbers
    if a.dtype != b.dtype:
        assert "dtype" in row.what
        x, y = wide(a), wide(b)
        assert numbers.differing == int(((x != y) & ~(np.isnan(x) & np.isnan(y))).sum())
    if not known.any():
        assert numbers.max_abs is None
        return
    assert numbers.max_abs == apart.max()
    assert numbers.max_rel == pytest.approx(relative.max(), rel=1e-15)
    assert numbers.mean_abs == pytest.approx(apart.mean(), rel=1e-12)
    assert numbers.mean_rel == pytest.approx(relative.mean(), rel=1e-12)
    if math.isfinite(cosine):
        assert numbers.cosine == pytest.approx(cosine, abs=1e-12)
    else:
        assert numbers.cosine is None


@pytest.mark.parametrize(
    ("a", "b", "differing", "apart"),
    [
        ([2**53], [2**53 + 1], 1, 1.0),
        ([-(2**63)], [2**63 - 1], 1, float(2**64)),
        ([5, 7], [5, 6], 1, 1.0),
    ],
)
def test_integers_are_not_rounded(tmp_path, a, b, differing, apart):
    (row,) = differ(tmp_path, torch.tensor(a), torch.tensor(b)).changed
    assert (row.numbers.differing, row.numbers.max_abs) == (differing, apart)


@pytest.mark.parametrize(
    ("a", "b", "differing"),
    [
        (torch.tensor([2**53 + 1, 3, -4]), torch.tensor([2.0**53, 3.0, -4.0]).double(), 1),
        (torch.tensor([2**63 - 1]), torch.tensor([2.0**63]).double(), 1),
        (torch.tensor([2**53]), torch.tensor([2**53], dtype=torch.uint64), 0),
        (torch.tensor([1, 0]), torch.tensor([True, False]), 0),
        (torch.tensor([1, 2]), torch.tensor([1.0, 2.5]), 1),
        (torch.tensor([math.nan, 1.0]), torch.tensor([math.nan, 1.0]).half(), 0),
        (torch.tensor([math.nan, 1.0]), torch.tensor([0.0, 1.0]).half(), 1),
    ],
)
def test_values_of_two_dtypes_are_compared_exactly(tmp_path, a, b, differing):
    for left, right in ((a, b), (b, a)):
        (row,) = differ(tmp_path, left, right).changed
        assert row.numbers.differing == differing
        assert ("values" in row.what) == bool(differing)
        assert "dtype" in row.what


def test_nan_payloads_and_signs_of_zero_are_differences(tmp_path):
    odd = struct.unpack("<f", struct.pack("<I", 0x7FC00001))[0]
    raw = torch.tensor([0x7FC00000, 0x7FC00000, 0, 1], dtype=torch.int32)
    other = torch.tensor([0x7FC00001, 0x7FC00000, -(2**31), 1], dtype=torch.int32)
    assert math.isnan(odd)
    found = differ(tmp_path, raw.view(torch.float32), other.view(torch.float32))
    numbers = found.changed[0].numbers
    assert (numbers.differing, numbers.max_abs, numbers.nan_a, numbers.nan_b) == (2, 0.0, 2, 2)


def test_infinities_and_overflow(tmp_path):
    a = torch.tensor([math.inf, -math.inf, math.inf, 1.7e308], dtype=torch.float64)
    b = torch.tensor([math.inf, -math.inf, 1.0, -1.7e308], dtype=torch.float64)
    numbers = differ(tmp_path, a, b).changed[0].numbers
    assert numbers.differing == 2
    assert numbers.max_abs == math.inf
    assert numbers.cosine is None
    numbers = differ(tmp_path, a[3:], b[3:]).changed[0].numbers
    assert numbers.max_rel == 2.0


def test_cosine_of_known_angles(tmp_path):
    one, right = torch.tensor([3.0, 4.0]), torch.tensor([-4.0, 3.0])
    assert differ(tmp_path, one, right).changed[0].numbers.cosine == 0.0
    assert differ(tmp_path, one, -2 * one).changed[0].numbers.cosine == -1.0
    assert differ(tmp_path, one, one * 0).changed[0].numbers.cosine is None


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,)])
def test_empty_and_zero_dimensional(tmp_path, shape):
    a = torch.zeros(shape)
    assert differ(tmp_path, a, a.clone()).equal
    found = differ(tmp_path, a, a + 1)
    assert found.equal == (a.numel() == 0)
    assert differ(tmp_path, a, a.double()).changed[0].what == ("dtype",)
    assert differ(tmp_path, a, a.unsqueeze(0)).changed[0].what == ("shape",)


@given(st.integers(1, 64), st.sampled_from(["savez", "savez_compressed"]), st.booleans(),
       st.sampled_from(["<i2", ">i4", "<f8", ">c8", "<U3", "S5", "<M8[s]", "?"]))  # fmt: skip
@settings(max_examples=120, deadline=None)
def test_chunks_of_arrays_end_within_elements(place, chunk, save, fortran, dtype):
    """Compressed, Fortran-ordered and big-endian arrays are cut where their elements end."""
    numbers = np.arange(35).reshape(5, 7)
    a = numbers.astype(dtype, order="F" if fortran else "C")
    b = a.copy(order="C")
    b[3, 2] = numbers.astype(dtype)[0, 1] if dtype != "?" else False
    getattr(np, save)(place / "a.npz", x=a)
    np.savez(place / "b.npz", x=b)
    np.savez(place / "same.npz", x=a.copy(order="C"))
    with override(chunk_bytes=chunk):
        assert holdtrue.diff(place / "a.npz", place / "same.npz").equal
        (row,) = holdtrue.diff(place / "a.npz", place / "b.npz").changed
    assert row.numbers.differing == 1
    assert row.numbers.elements == 35
    assert (row.numbers.max_abs is None) == (dtype[-1] not in "248?")


def test_text_of_no_letters_beside_numbers(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array(["", ""]).astype("<U0"))
    np.savez(tmp_path / "b.npz", x=np.array([1.0, 2.0]))
    (row,) = holdtrue.diff(tmp_path / "a.npz", tmp_path / "b.npz").changed
    assert "dtype" in row.what


def test_sparse_and_quantised_by_their_components(tmp_path):
    eye = torch.eye(3)
    other = eye.clone()
    other[1, 1] = 5
    found = differ(tmp_path, eye.to_sparse(), other.to_sparse())
    assert [row.name for row in found.changed] == ["t/values"]
    assert found.changed[0].numbers.max_abs == 4.0
    assert differ(tmp_path, eye.to_sparse(), eye.to_sparse()).equal
    csr = differ(tmp_path, eye.to_sparse_csr(), other.to_sparse_csr())
    assert [row.name for row in csr.changed] == ["t/values"]
    assert "layout" in differ(tmp_path, eye, eye.to_sparse()).changed[0].what
    steps = [torch.quantize_per_tensor(eye, scale, 0, torch.qint8) for scale in (0.1, 0.2)]
    quantised = differ(tmp_path, *steps)
    assert quantised.changed[0].what == ("values", "quantizer")
    assert quantised.changed[0].numbers.max_abs == 5.0
    assert differ(tmp_path, steps[0], steps[0].clone()).equal


def test_meta_tensors_have_shapes_only(tmp_path):
    meta = torch.empty(3, device="meta")
    assert differ(tmp_path, meta, meta).equal
    assert not differ(tmp_path, meta, torch.empty(4, device="meta")).equal
    assert not differ(tmp_path, meta, torch.zeros(3)).equal


@pytest.mark.parametrize("other", ["equal", "late", "all", "half", "strided", "compressed"])
def test_memory_stays_at_a_few_chunks(tmp_path, other, figure):
    """64 MiB against 64 MiB with chunks of 1 MiB."""
    a = torch.zeros(4096, 4096)
    b = a.half() if other == "half" else a + (other == "all")
    if other == "late":
        b[-1, -1] = 1
    if other == "strided":
        b = (b + 1).t()
    if other == "compressed":
        np.savez_compressed(tmp_path / "b", a=b.numpy() + 1)
    elif other == "strided":
        torch.save({"a": b}, tmp_path / "b.pt")
    else:
        save_file({"a": b}, tmp_path / "b.safetensors")
    save_file({"a": a}, tmp_path / "a.safetensors")
    (path,) = tmp_path.glob("b*")
    holdtrue.diff(path, path)  # imports apart
    with override(chunk_bytes=MIB):
        tracemalloc.start()
        found = holdtrue.diff(tmp_path / "a.safetensors", path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert found.equal == (other == "equal")
    assert peak < 10 * MIB
    figure("diff: pairs of 64 MiB held to 10 MiB")


def test_known_digests_save_reading(tmp_path, monkeypatch):
    model = torch.nn.Linear(64, 64)
    holdtrue.save(tmp_path / "a", model=model)
    model.bias.data[3] += 1
    holdtrue.save(tmp_path / "b", model=model)
    read_names = []
    real = side_by_side.read_box
    monkeypatch.setattr(
        side_by_side, "read_box", lambda t, *box: read_names.append(t.shape) or real(t, *box)
    )
    found = holdtrue.diff(tmp_path / "a", tmp_path / "b")
    assert found.equal_by_digest == 1
    assert [row.name for row in found.changed] == ["model/bias"]
    assert (64, 64) not in read_names
    assert (64,) in read_names


def test_what_is_read_is_checked_against_its_digest(tmp_path):
    model = torch.nn.Linear(4, 4)
    holdtrue.save(tmp_path / "a", model=model)
    torch.save(model.state_dict(), tmp_path / "b.pt")
    path = tmp_path / "a" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(holdtrue.DamageError) as error:
        holdtrue.diff(tmp_path / "a", tmp_path / "b.pt")
    assert error.value.report.findings[0].code == "digest-mismatch"


def test_measure_agrees_with_same_bytes_over_chunk_sizes(place, figure):
    a, b = moderate("float32", (7, 11), 1), moderate("float32", (7, 11), 1)
    b[6, 10] += 1
    torch.save([a, b], place / "pair.pt")
    x, y = read(str(place / "pair.pt")).tree
    assert isinstance(x, LazyTensor)
    with override(chunk_bytes=1 << 20):
        whole = measure(x, y)
    for chunk in range(1, 65):
        with override(chunk_bytes=chunk):
            assert not same_bytes(x, y)
            assert same_bytes(x, x)
            part = measure(x, y)
        assert (part.differing, part.max_abs, part.max_rel) == (1, whole.max_abs, whole.max_rel)
        assert part.mean_abs == pytest.approx(whole.mean_abs, rel=1e-14)
        figure("diff: chunk sizes")
