"""The weights of an exported program as records of plain bytes, described by a JSON record."""

from typing import Any

from holdtrue.errors import DamageError, fail
from holdtrue.findings import Finding
from holdtrue.formats.finding_groups import keep
from holdtrue.formats.pickle_context import ArgumentsError
from holdtrue.formats.pickle_tensors import shape_of, swap_unit, whole_number
from holdtrue.formats.strict_json import strict_json
from holdtrue.formats.torch_zip import Records
from holdtrue.formats.view import LazyTensor, Piece, Storage
from holdtrue.formats.zip_archive import finding, storage_of
from holdtrue.limits import limits
from holdtrue.records.dtypes import DTYPES, product

# torch.export's numbers for dtypes, which are part of its schema.
_DTYPES: dict[int, str] = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32",
    8: "float64", 9: "complex32", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16",
    28: "uint16", 29: "float8_e4m3fn", 30: "float8_e5m2", 31: "float8_e4m3fnuz",
    32: "float8_e5m2fnuz", 33: "float8_e8m0fnu", 34: "uint32", 35: "uint64",
}  # fmt: skip
_STRIDED = 7


def json_record(records: Records, name: str) -> dict[str, Any]:
    """A JSON record of the archive that holds an object. Raises DamageError."""
    raw = records.read(name, limits().header_bytes)
    try:
        value = strict_json(raw or b"")
    except ValueError as error:
        raise _damaged(records.where(name), str(error)) from None
    if not isinstance(value, dict):
        raise _damaged(records.where(name), "it holds no object")
    return value


def payload(
    records: Records, config: str, folder: str, findings: list[Finding]
) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """The tensors by name; and for those that were pickled, the record of each."""
    listed = json_record(records, config).get("config")
    if not isinstance(listed, dict):
        raise _damaged(records.where(config), "it lists no tensors")
    plain: dict[str, LazyTensor] = {}
    pickled: dict[str, str] = {}
    storages: dict[str, Storage] = {}
    for key, meta in listed.items():
        where = f"{records.where(config)}: {key[:200]}"
        try:
            name = folder + _text(meta["path_name"])
            if meta.get("use_pickle"):
                pickled[key] = name
                continue
            shape = meta.get("tensor_meta")
            if not isinstance(shape, dict):  # a custom object, kept by torch in its own way
                keep(findings, finding("pt2-object", "warning", where, "not a tensor; not read"))
                continue
            plain[key] = _tensor(records, name, shape, meta.get("is_param") is True, storages)
        except (ArgumentsError, KeyError, TypeError, AttributeError) as error:
            keep(findings,
                finding("pt2-tensor", "error", where, "a tensor is described in a way that "
                        "makes no sense", str(error)[:200])
            )  # fmt: skip
    return plain, pickled


def _tensor(
    records: Records, name: str, meta: dict[str, Any], parameter: bool, storages: dict[str, Storage]
) -> LazyTensor:
    dtype = _DTYPES.get(meta["dtype"])
    if dtype is None or meta.get("layout", _STRIDED) != _STRIDED:
        raise ArgumentsError("a dtype or layout that is not known")
    shape = shape_of([_int(n) for n in meta["sizes"]])
    stride = shape_of([_int(n) for n in meta["strides"]])
    offset = whole_number(_int(meta["storage_offset"]))
    if len(shape) != len(stride):
        raise ArgumentsError("sizes and strides of different lengths")
    if name not in storages:
        storages[name] = _storage(records, name, dtype, bool(product(shape)))
    storage = storages[name]
    reach = offset + 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if product(shape) and reach * DTYPES[dtype].itemsize > storage.nbytes:
        raise ArgumentsError(
            f"it needs {reach * DTYPES[dtype].itemsize:,} bytes, {storage.nbytes:,} are there"
        )
    piece = Piece(
        start=(0,) * len(shape), shape=shape, storage=storage, offset=offset, stride=stride
    )
    return LazyTensor(
        dtype=dtype,
        shape=shape,
        stride=stride,
        pieces=(piece,),
        device=_device(meta.get("device")),
        requires_grad=meta.get("requires_grad") is True,
        parameter=parameter,
    )


def _storage(records: Records, name: str, dtype: str, needed: bool) -> Storage:
    entry = records.entry(name)
    if entry is None:
        if needed:
            raise ArgumentsError(f"its record {name[:200]} is missing")
        return Storage(key=name, file=records.archive.path, offset=0, nbytes=0)
    if not records.big_endian:
        return storage_of(records.archive, entry, name)
    return storage_of(records.archive, entry, name, big_endian=True, itemsize=swap_unit(dtype))


def _int(value: Any) -> Any:
    """A size: a number, or {"as_int": number}; what is symbolic has no bytes here."""
    return value["as_int"] if isinstance(value, dict) else value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ArgumentsError("a record whose name is no text")
    return value


def _device(value: Any) -> str:
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        return "cpu"
    index = value.get("index")
    kind: str = value["type"][:32]
    return kind + (f":{index}" if type(index) is int else "")


def _damaged(where: str, why: str) -> DamageError:
    return fail(
        DamageError,
        where,
        Finding(
            code="json-damaged",
            severity="error",
            where=where,
            what="a JSON record of the archive cannot be read",
            why=why,
            fix="fetch or export the file again",
        ),
    )
