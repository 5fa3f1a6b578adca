"""Statistics equal what torch computes, for every dtype, layout and size of blocks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import holdtrue
from holdtrue.doctor.reading_weights import read_weights
from holdtrue.doctor.statistics import summarise
from holdtrue.doctor.zero_runs import ZeroRuns
from holdtrue.limits import override

REAL = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
        torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz]  # fmt: skip
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool,
            torch.uint16, torch.uint32, torch.uint64]  # fmt: skip
COMPLEX = [torch.complex32, torch.complex64, torch.complex128]


def _stored(tensor, folder):
    torch.save(tensor, folder / "t.pt")
    (lazy,) = holdtrue.open(folder / "t.pt").view.tensors.values()
    return lazy


def _bits(dtype, seed, count):
    """Any bits: NaN, infinities and denormals of every kind are among them."""
    width = torch.empty(0, dtype=dtype).element_size()
    generator = np.random.default_rng(seed)
    data = generator.integers(0, 256, count * width, np.uint8)
    if dtype == torch.bool:
        data &= 1
    zero = generator.random(count) < 0.2
    data.reshape(count, width)[zero] = 0
    return torch.from_numpy(data).view(dtype)


@pytest.mark.parametrize("dtype", REAL + INTEGERS, ids=str)
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 1 << 30),
    shape=st.lists(st.integers(1, 9), max_size=3),
    block=st.sampled_from([8, 64, 1 << 20]),
)
def test_real_numbers(tmp_path, dtype, seed, shape, block):
    tensor = _bits(dtype, seed, math.prod(shape)).reshape(shape)
    with override(chunk_bytes=block):
        found = summarise(_stored(tensor, tmp_path))
    wide = tensor.to(torch.float64) if dtype in REAL else tensor.to(torch.int64)
    known = wide.double().reshape(-1)
    if dtype == torch.uint64:
        known = torch.from_numpy(tensor.numpy().astype(np.float64)).reshape(-1)
    finite = known[known.isfinite()]
    assert found.elements == known.numel()
    assert found.nan == known.isnan().sum()
    assert found.plus_infinite == (known == torch.inf).sum()
    assert found.minus_infinite == (known == -torch.inf).sum()
    assert found.zeros == (known == 0).sum()
    assert found.negative == (finite < 0).sum()
    if dtype in REAL:
        tiny = torch.finfo(dtype).smallest_normal
        assert found.denormals == ((finite.abs() < tiny) & (finite != 0)).sum()
    bad = (~known.isfinite()).nonzero()
    first = None if not len(bad) else np.unravel_index(int(bad[0]), tuple(shape))
    assert found.first_bad == (first if first is None else tuple(int(i) for i in first))
    if not len(finite):
        assert found.low is None
        return
    assert (float(found.low), float(found.high)) == (finite.min(), finite.max())
    wider = finite.numpy().astype(np.longdouble)  # squares of float64 overflow float64
    if dtype != torch.float64:
        scale = float(np.abs(wider).max()) or 1.0
        assert found.mean == pytest.approx(float(wider.mean()), rel=1e-4, abs=1e-5 * scale)
        expected = float(np.sqrt(np.square(wider).mean()))
        assert found.rms == pytest.approx(expected, rel=1e-3, abs=1e-22)


@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_complex_numbers(tmp_path, dtype, seed):
    tensor = _bits(dtype, seed, 40)
    found = summarise(_stored(tensor, tmp_path))
    known = tensor.to(torch.complex128)
    nan = known.real.isnan() | known.imag.isnan()
    infinite = (known.real.isinf() | known.imag.isinf()) & ~nan
    finite = torch.view_as_real(known[~nan & ~infinite])
    assert (found.nan, found.infinite) == (nan.sum(), infinite.sum())
    assert found.zeros == (known == 0).sum()
    assert (found.low, found.high) == (finite.min(), finite.max())


@pytest.mark.parametrize("block", [16, 40, 1 << 20])
@pytest.mark.parametrize("seed", range(4))
def test_rows(tmp_path, block, seed):
    torch.manual_seed(seed)
    matrix = torch.randn(60, 5)
    zero = torch.rand(60) < 0.3
    matrix[zero] = 0
    again = [i for i in range(1, 60) if torch.rand(()) < 0.2]
    for i in again:
        matrix[i] = matrix[i - 1]
    with override(chunk_bytes=block):
        rows = summarise(_stored(matrix, tmp_path)).rows
    empty = (~matrix.any(1)).nonzero().flatten().tolist()
    same = ((matrix[1:] == matrix[:-1]).all(1) & matrix[1:].any(1)).sum()
    assert (rows.count, rows.zero, rows.repeated) == (60, len(empty), same)
    assert (rows.first, rows.last) == (empty[0], empty[-1])


@given(st.lists(st.booleans(), max_size=80), st.integers(1, 7), st.integers(1, 5))
def test_runs_of_zeros_whatever_the_blocks(flags, block, least):
    found = ZeroRuns(least)
    for at in range(0, len(flags), block):
        part = np.array(flags[at : at + block])
        found.add(at, part, int(part.sum()))
    text = "".join("0" if flag else "x" for flag in flags)
    expected, at = [], 0
    for run in text.split("x"):
        if len(run) >= least:
            expected.append((at, len(run)))
        at += len(run) + 1
    assert list(found.finished(len(flags))) == expected


def test_layouts_give_the_same(tmp_path):
    torch.manual_seed(0)
    base = torch.randn(6, 8, 4, 5)
    known = summarise(_stored(base, tmp_path))
    last = summarise(_stored(base.to(memory_format=torch.channels_last), tmp_path))
    view = torch.randn(20, 8, 4, 5)
    view[5:11] = base
    part = summarise(_stored(view[5:11], tmp_path))
    assert known == last == part


def test_components_are_read_by_themselves(tmp_path):
    sparse = torch.eye(5).mul(torch.nan).to_sparse()
    quantised = torch.quantize_per_tensor(torch.arange(4.0), 0.5, 1, torch.quint8)
    torch.save({"sparse": sparse, "quantised": quantised}, tmp_path / "f.pt")
    statistics = read_weights(holdtrue.open(tmp_path / "f.pt").view)[0].statistics
    assert statistics["sparse/values"].nan == 25
    assert (statistics["quantised"].low, statistics["quantised"].high) == (1, 7)


def test_tied_tensors_are_read_once(tmp_path):
    shared = torch.randn(1000)
    torch.save({"a": shared, "b": shared, "c": shared[:500]}, tmp_path / "f.pt")
    told = []
    read_weights(holdtrue.open(tmp_path / "f.pt").view, lambda *at: told.append(at))
    assert told[-1] == (6000, 6000)


def test_memory_stays_bounded(tmp_path):
    import tracemalloc

    torch.save(torch.zeros(8 << 20), tmp_path / "f.pt")
    (lazy,) = holdtrue.open(tmp_path / "f.pt").view.tensors.values()
    with override(chunk_bytes=1 << 20):
        tracemalloc.start()
        summarise(lazy)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8 << 20
