import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from damage import flips, survives, truncations
from hypothesis import given, settings
from hypothesis import strategies as st

from holdtrue.errors import DamageError, HoldtrueError
from holdtrue.formats.arrays import numpy_dtype
from holdtrue.formats.numpy_files import read_npy, read_npz
from holdtrue.formats.tensor_bytes import read_tensor
from holdtrue.limits import override
from holdtrue.records.inert import Record

KINDS = [
    "b1",
    "i1",
    "u1",
    "i2",
    "u2",
    "i4",
    "u4",
    "i8",
    "u8",
    "f2",
    "f4",
    "f8",
    "c8",
    "c16",
    "f16",
    "c32",
    "S3",
    "U2",
    "V5",
    "V16",
    "M8[ns]",
    "m8[s]",
    "S0",
    "U0",
]
SHAPES = [(), (0,), (3,), (2, 3), (2, 1, 3), (2, 0), (1,) * 20 + (2,)]
TORCH = {
    "b1": "bool",
    "u1": "uint8",
    "i8": "int64",
    "f2": "float16",
    "f4": "float32",
    "c16": "complex128",
    "u2": "uint16",
}


def random_array(kind, shape, order, letters):
    dtype = np.dtype(letters + kind)
    count = int(np.prod(shape)) * dtype.itemsize
    rng = np.random.default_rng(len(shape))
    raw = rng.integers(0, 2 if kind == "b1" else 100, count, np.uint8).tobytes()
    array = np.ndarray(shape, dtype, raw) if dtype.itemsize else np.zeros(shape, dtype)
    return np.array(array, order=order)


def as_bytes(array):
    little = array.astype(array.dtype.newbyteorder("<")) if array.dtype.names is None else array
    return little.tobytes("C")


def everything(path):
    view = (read_npz if zipfile.is_zipfile(path) else read_npy)(path)
    return {name: read_tensor(tensor) for name, tensor in view.tensors.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("letters", ["<", ">"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_dtype_shape_and_order_bit_for_bit(tmp_path, kind, letters, order):
    arrays = {}
    for index, shape in enumerate(SHAPES):
        array = arrays[f"a{index}"] = random_array(kind, shape, order, letters)
        path = tmp_path / "f"
        with path.open("wb") as file:
            np.save(file, array)
        view = read_npy(str(path))
        tensor = view.tensors[""]
        assert view.tree is tensor
        assert tensor.shape == array.shape
        assert read_tensor(tensor).tobytes() == as_bytes(array)
        assert np.dtype(tensor.numpy) == array.dtype.newbyteorder("<")
        assert tensor.dtype == TORCH.get(kind, tensor.dtype)
        if array.size > 1 and array.dtype.itemsize:
            steps = zip(tensor.stride, array.strides, array.shape, strict=True)
            assert all(a * array.itemsize == b for a, b, n in steps if n > 1)
    for save in (np.savez, np.savez_compressed):
        with path.open("wb") as file:
            save(file, **arrays)
        view = read_npz(str(path))
        assert list(view.tree) == list(arrays)
        for name, array in arrays.items():
            assert read_tensor(view.tensors[name]).tobytes() == as_bytes(array)


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_all_versions_of_the_format(tmp_path, version):
    path = tmp_path / "f"
    array = np.arange(6.0).reshape(2, 3)
    with path.open("wb") as file:
        np.lib.format.write_array(file, array, version)
    view = read_npy(str(path))
    assert view.about["npy_version"] == f"{version[0]}.{version[1]}"
    assert read_tensor(view.tree).tobytes() == array.tobytes()


STRUCTURES = [
    [("a", "<i1"), ("b", ">f8")],
    [("a", "<i4", (2, 2)), ("ü", "<U3")],
    [("outer", [("inner", "<f4"), ("deep", [("x", "|u1")])])],
]


@pytest.mark.parametrize("descr", STRUCTURES)
@pytest.mark.parametrize("compressed", [False, True])
def test_structures_are_data_with_their_fields_beside_them(tmp_path, descr, compressed):
    dtype = np.dtype(descr)
    raw = bytes(i % 90 for i in range(4 * dtype.itemsize))
    array = np.frombuffer(raw, dtype).reshape(2, 2)
    path = tmp_path / "f"
    with path.open("wb") as file:
        (np.savez_compressed if compressed else np.savez)(file, a=array)
    tensor = read_npz(str(path)).tensors["a"]
    again = read_tensor(tensor).view(numpy_dtype(tensor, "a")).reshape(tensor.shape)
    assert again.dtype == dtype
    assert again.tobytes() == raw


@pytest.mark.parametrize("compressed", [False, True])
def test_objects_are_walked_and_not_made(tmp_path, compressed):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    path = tmp_path / "f"
    array = np.array([1, "two", {"three": np.arange(3)}, Trap()], object)
    with path.open("wb") as file:
        (np.savez_compressed if compressed else np.savez)(file, a=array)
    view = read_npz(str(path))
    assert not (tmp_path / "sprung").exists()
    assert isinstance(view.tree["a"], Record)
    assert any("open" in op.name for op in view.about["would_run"])
    (inner,) = view.tensors.values()
    assert read_tensor(inner).tobytes() == np.arange(3).tobytes()
    with path.open("wb") as file:
        np.save(file, array)
    assert any("open" in op.name for op in read_npy(str(path)).about["would_run"])
    assert not (tmp_path / "sprung").exists()


def header(text, version=1):
    raw = text if isinstance(text, bytes) else text.encode()
    return (
        b"\x93NUMPY"
        + bytes([version, 0])
        + len(raw).to_bytes(2 if version == 1 else 4, "little")
        + raw
    )


def test_a_header_as_python_2_wrote_it(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(
        header("{'descr': u'<i2', 'fortran_order': False, 'shape': (2L, 1L), }\n") + b"\1\0\2\0"
    )
    assert read_tensor(read_npy(str(path)).tree).tobytes() == b"\1\0\2\0"


GOOD = "{'descr': '<i2', 'fortran_order': False, 'shape': (2,), }"


literals = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    descr=literals | st.sampled_from(["<f4", "|u1", ">i8", "|O", "<U2", "|V3", "<M8[s]"]),
    order=literals | st.booleans(),
    shape=literals | st.tuples(st.integers(0, 5)),
    data=st.binary(max_size=80),
)
@settings(max_examples=300, deadline=None)
def test_any_header_gives_an_array_or_a_finding(tmp_path_factory, descr, order, shape, data):
    path = tmp_path_factory.mktemp("npy") / "f"
    text = repr({"descr": descr, "fortran_order": order, "shape": shape})
    path.write_bytes(header(text.encode("utf-8", "surrogateescape"), 3) + data)
    try:
        wanted = np.load(path)
    except Exception:
        wanted = None
    try:
        view = read_npy(str(path))
    except HoldtrueError:
        assert wanted is None or wanted.dtype.kind == "O"
        return
    if wanted is not None:
        assert read_tensor(view.tree).tobytes() == as_bytes(wanted)


def test_what_follows_an_array_is_said(tmp_path):
    path = tmp_path / "f"
    with path.open("wb") as file:
        np.save(file, np.arange(3))
        np.save(file, np.arange(4))
    view = read_npy(str(path))
    assert [f.code for f in view.findings] == ["trailing-bytes"]
    assert view.tree.shape == (3,)


def npz(**members):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_a_member_that_is_no_array(tmp_path):
    path = tmp_path / "f"
    path.write_bytes(npz(**{"a.npy": b"hello"}))
    with pytest.raises(DamageError) as error:
        read_npz(str(path))
    assert error.value.report.findings[0].code == "npy-damaged"


def test_a_member_that_inflates_past_the_budget_is_refused_when_it_is_read(tmp_path):
    path = tmp_path / "f"
    with path.open("wb") as file:
        np.savez_compressed(file, a=np.zeros(1_000_000, np.uint8))
    assert path.stat().st_size < 5000
    with override(inflated_bytes=100_000), pytest.raises(HoldtrueError):
        everything(str(path))
    assert len(everything(str(path))["a"]) == 1_000_000


def test_opening_inflates_no_more_than_headers(tmp_path, monkeypatch):
    import holdtrue.formats.tensor_bytes as module

    path = tmp_path / "f"
    with path.open("wb") as file:
        np.savez_compressed(file, a=np.random.default_rng(0).random(1_000_000))
    read = []
    real = module._read_raw
    monkeypatch.setattr(module, "_read_raw", lambda s, a, n: read.append(n) or real(s, a, n))
    read_npz(str(path))
    assert sum(read) <= 3 << 20


def small(kind):
    buffer = io.BytesIO()
    if kind == "npy":
        np.save(buffer, np.arange(6, dtype="<f4").reshape(2, 3))
    elif kind == "npy of objects":
        np.save(buffer, np.array([1, "a", None], object))
    else:
        save = np.savez if kind == "npz" else np.savez_compressed
        save(buffer, a=np.arange(6.0), b=np.ones((2, 2), "F"))
    return buffer.getvalue()


def read_either(path):
    packed = Path(path).read_bytes().startswith(b"PK")
    view = (read_npz if packed else read_npy)(path)
    return [read_tensor(tensor) for tensor in view.tensors.values()]


@pytest.mark.parametrize("kind", ["npy", "npy of objects", "npz", "npz deflated"])
def test_every_truncation_is_refused(tmp_path, kind):
    data = small(kind)
    opened, refused = survives(tmp_path / "f", truncations(data), read_either)
    assert refused == len(data) - opened
    assert not opened


@pytest.mark.parametrize("kind", ["npy", "npy of objects", "npz", "npz deflated"])
@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_random_flips(tmp_path, kind, count):
    opened, refused = survives(tmp_path / "f", flips(small(kind), count), read_either)
    assert opened + refused == count
    assert refused > count // 10
