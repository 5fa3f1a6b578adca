"""The constructors that are known, and what each makes as data. A call of any other is a record.

The table is what tells checkpoint data from code: a name is in it because what it makes can be
written down without running anything.
"""

import codecs
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

from holdtrue.formats import pickle_layouts, pickle_numpy, pickle_tensors
from holdtrue.formats.pickle_containers import elements, put
from holdtrue.formats.pickle_context import ArgumentsError, Context
from holdtrue.formats.view import LazyTensor
from holdtrue.records.dtypes import DTYPES
from holdtrue.records.inert import InertKey, NamedReference, Record

Constructor = Callable[[Context, tuple[Any, ...]], Any]

# Factories that a defaultdict may keep: they make an empty value and nothing else.
_FACTORIES: dict[str, Callable[[], Any]] = {
    "builtins.dict": dict, "builtins.list": list, "builtins.set": set, "builtins.int": int,
    "builtins.float": float, "builtins.str": str, "builtins.bool": bool, "builtins.tuple": tuple,
    "collections.OrderedDict": OrderedDict, "collections.Counter": Counter,
}  # fmt: skip

# Names that say what something is. Importing them runs nothing but their library.
_PLAIN_NAMES = frozenset({
    "numpy.ndarray", "numpy.matrix", "numpy.memmap", "numpy.ma.core.MaskedArray", "torch.Tensor",
    "torch._tensor.Tensor", "torch.tensor.Tensor", "torch.strided", "torch.sparse_coo",
    "torch.sparse_csr", "torch.sparse_csc", "torch.sparse_bsr", "torch.sparse_bsc",
    "torch._mkldnn", "torch.jagged", "torch.per_tensor_affine", "torch.per_channel_affine",
    "torch.per_tensor_symmetric", "torch.per_channel_symmetric",
    "torch.per_channel_affine_float_qparams", "torch.contiguous_format", "torch.channels_last",
    "torch.channels_last_3d", "torch.preserve_format", "torch.torch_version.TorchVersion",
    "builtins.object", "builtins.type", "builtins.int", "builtins.float", "builtins.bool",
    "builtins.str", "builtins.bytes", "builtins.Ellipsis", "builtins.NotImplemented",
    "builtins.NoneType", "types.NoneType", "copyreg._reconstructor", "copyreg.__newobj__",
    "torch.nested._internal.nested_tensor.NestedTensor",
    "torch.serialization._get_layout", "torch.storage.TypedStorage",
    "torch.storage.UntypedStorage", "torch.UntypedStorage", "torch.TypedStorage",
})  # fmt: skip

# Classes of the standard library and NumPy whose instances are kept as records, and are harmless.
_INERT_CLASSES = frozenset({
    "datetime.date", "datetime.datetime", "datetime.time", "datetime.timedelta",
    "datetime.timezone", "pathlib.Path", "pathlib.PosixPath", "pathlib.WindowsPath",
    "pathlib.PurePath", "pathlib.PurePosixPath", "pathlib.PureWindowsPath",
    "pathlib._local.PosixPath", "pathlib._local.WindowsPath", "pathlib._local.PurePosixPath",
    "pathlib._local.PureWindowsPath", "decimal.Decimal", "fractions.Fraction", "uuid.UUID",
    "argparse.Namespace", "types.SimpleNamespace", "zoneinfo.ZoneInfo._unpickle",
    "array._array_reconstructor", "array.array", "random.Random", "string.Template",
    "ipaddress.IPv4Address", "ipaddress.IPv6Address", "collections.UserDict",
    "collections.UserList", "collections.ChainMap", "builtins.memoryview",
    "numpy.random._pickle.__randomstate_ctor", "numpy.random._pickle.__generator_ctor",
    "numpy.random._pickle.__bit_generator_ctor", "numpy.random.mtrand.RandomState",
    "numpy.random.__RandomState_ctor", "numpy.ma.core._mareconstruct",
    "numpy.random._mt19937.MT19937", "numpy.random._pcg64.PCG64",
    "numpy.random._pcg64.PCG64DXSM", "numpy.random._philox.Philox",
    "numpy.random._sfc64.SFC64", "numpy.random.bit_generator.SeedSequence",
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence",
})  # fmt: skip


def _ordered(context: Context, args: tuple[Any, ...]) -> Any:
    return _filled(context, OrderedDict(), args)


def _filled(context: Context, target: Any, args: tuple[Any, ...]) -> Any:
    """A dict from nothing, a mapping, or pairs (Python 2 wrote OrderedDict with its items)."""
    if len(args) > 1:
        raise ArgumentsError("a dict from several arguments")
    source = args[0] if args else ()
    pairs = source.items() if isinstance(source, dict) else source
    if not isinstance(source, (dict, list, tuple)):
        raise ArgumentsError("a dict from something that holds no pairs")
    context.spend_nodes(len(pairs))
    for pair in pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ArgumentsError("a dict from something that is no pair")
        key = pair[0].value if isinstance(pair[0], InertKey) else pair[0]
        put(target, key, pair[1])
    return target


def _defaultdict(context: Context, args: tuple[Any, ...]) -> Any:
    factory = args[0] if args else None
    if factory is None:
        return _filled(context, defaultdict(None), args[1:])
    if isinstance(factory, NamedReference) and factory.name in _FACTORIES:
        return _filled(context, defaultdict(_FACTORIES[factory.name]), args[1:])
    if len(args) > 2:
        raise ArgumentsError("a defaultdict with other arguments")
    items = list(_filled(context, {}, args[1:]).items())
    return Record(class_name="collections.defaultdict", args=args[:1], items=items or None)


def _counter(context: Context, args: tuple[Any, ...]) -> Any:
    return _filled(context, Counter(), args)


def _sequence(context: Context, args: tuple[Any, ...]) -> list[Any]:
    """The one argument of set(), list() and their kin, as a list of its own."""
    if len(args) > 1:
        raise ArgumentsError("a collection from several arguments")
    source = args[0] if args else ()
    if not isinstance(source, (list, tuple, set, frozenset, dict, deque, str)):
        raise ArgumentsError("a collection from something that is none")
    context.spend_nodes(len(source))
    return [item.value if isinstance(item, InertKey) else item for item in source]


def _set(context: Context, args: tuple[Any, ...]) -> set[Any]:
    return set(elements(_sequence(context, args)))


def _frozenset(context: Context, args: tuple[Any, ...]) -> frozenset[Any]:
    return frozenset(elements(_sequence(context, args)))


def _deque(context: Context, args: tuple[Any, ...]) -> deque[Any]:
    limit = args[1] if len(args) > 1 else None
    if limit is not None and (type(limit) is not int or not 0 <= limit < 1 << 62):
        raise ArgumentsError("a deque of no possible length")
    return deque(_sequence(context, args[:1]), limit)


def _bytearray(context: Context, args: tuple[Any, ...]) -> bytearray:
    data = _bytes(context, args)
    return bytearray(data)


def _bytes(context: Context, args: tuple[Any, ...]) -> bytes:
    if not args:
        return b""
    if len(args) == 2 and isinstance(args[0], str):
        return _encode(context, args)
    if len(args) == 1 and isinstance(args[0], (bytes, bytearray)):
        context.spend_bytes(len(args[0]))
        return bytes(args[0])
    if len(args) == 1 and isinstance(args[0], list):
        context.spend_bytes(len(args[0]))
        return bytes(args[0])
    raise ArgumentsError("bytes from something that holds none")


def _encode(context: Context, args: tuple[Any, ...]) -> bytes:
    """`_codecs.encode(text, "latin1")`, how protocol 2 spells bytes."""
    text, encoding = args if len(args) == 2 else (args[0] if args else None, "utf-8")
    if not isinstance(text, str) or not isinstance(encoding, str):
        raise ArgumentsError("bytes from something that is no text")
    if encoding.lower().replace("-", "").replace("_", "") not in ("latin1", "utf8", "ascii"):
        raise ArgumentsError(f"an unusual encoding, {encoding[:40]!r}")
    context.spend_bytes(len(text))
    return codecs.encode(text, encoding)


def _complex(context: Context, args: tuple[Any, ...]) -> complex:
    if len(args) > 2 or not all(type(part) in (int, float, bool) for part in args):
        raise ArgumentsError("a complex number from something else")
    return complex(*args)


def _range(context: Context, args: tuple[Any, ...]) -> range:
    if not 1 <= len(args) <= 3 or not all(type(part) is int for part in args):
        raise ArgumentsError("a range from something else")
    return range(*args)


def _slice(context: Context, args: tuple[Any, ...]) -> slice:
    if not 1 <= len(args) <= 3:
        raise ArgumentsError("a slice from something else")
    return slice(*args)


def _record(name: str) -> Constructor:
    return lambda context, args: Record(class_name=name, args=args)


def _getattr(context: Context, args: tuple[Any, ...]) -> Any:
    """How protocols below 4 spell a nested class. As data, the name is just longer."""
    if len(args) == 2 and isinstance(args[0], NamedReference) and isinstance(args[1], str):
        context.spend_bytes(len(args[0].name) + len(args[1]))
        reference = NamedReference(f"{args[0].name}.{args[1]}")
        if not is_plain_name(reference.name):
            context.would("import", reference.name, reference)
        return reference
    result = Record(class_name="builtins.getattr", args=args)
    context.would("call", "builtins.getattr", result)
    return result


def _get_layout(context: Context, args: tuple[Any, ...]) -> NamedReference:
    if len(args) != 1 or not isinstance(args[0], str):
        raise ArgumentsError("a layout that is none")
    return NamedReference(args[0] if args[0].startswith("torch.") else f"torch.{args[0]}")


def _rebuild_from_type(context: Context, args: tuple[Any, ...]) -> LazyTensor:
    """`_rebuild_from_type_v2(function, class, arguments, state)`."""
    if len(args) != 4 or not isinstance(args[0], NamedReference) or type(args[2]) is not tuple:
        raise ArgumentsError("a tensor subclass with other arguments")
    inner = CONSTRUCTORS.get(args[0].name)
    if inner is None or inner is _rebuild_from_type:
        raise ArgumentsError(f"a tensor from {args[0].name[:80]}")
    cls = args[1]
    if isinstance(cls, NamedReference) and not is_plain_name(cls.name):
        context.would("import", cls.name, cls)
    return pickle_layouts.as_class(context, inner(context, args[2]), cls, args[3])


def _load_from_bytes(context: Context, args: tuple[Any, ...]) -> Any:
    """A storage inside a plain pickle: a torch file as a byte string."""
    if len(args) != 1 or context.nested is None:
        raise ArgumentsError("a torch file inside that is not read here")
    return context.nested(args[0], context)


def _restore_type_tag(context: Context, args: tuple[Any, ...]) -> Any:
    """TorchScript's pickles tell the type of a container beside it."""
    if len(args) != 2:
        raise ArgumentsError("a type tag without a value")
    return args[0]


def _script_list(context: Context, args: tuple[Any, ...]) -> Any:
    """TorchScript's `build_intlist` and its kin."""
    if len(args) != 1 or not isinstance(args[0], list):
        raise ArgumentsError("a list from something that is none")
    return args[0]


def is_plain_name(name: str) -> bool:
    """Whether importing the name is nothing worth a mention."""
    package, _, last = name.rpartition(".")
    return (
        name in _PLAIN_NAMES
        or name in CONSTRUCTORS
        or name in _INERT_CLASSES
        or (package == "torch" and last in DTYPES)
        or (package in ("torch", "torch.cuda") and last.endswith(("Storage", "Tensor")))
        or (package in ("numpy", "numpy.dtypes") and not last.startswith("load"))
    )


def is_inert_class(name: str) -> bool:
    """Whether calling the name makes a harmless object, kept as a record."""
    return name in _INERT_CLASSES


def _table() -> dict[str, Constructor]:
    table: dict[str, Constructor] = {
        "collections.OrderedDict": _ordered, "collections.defaultdict": _defaultdict,
        "collections.Counter": _counter, "collections.deque": _deque, "builtins.set": _set,
        "builtins.frozenset": _frozenset, "builtins.bytearray": _bytearray,
        "builtins.bytes": _bytes, "builtins.complex": _complex, "builtins.range": _range,
        "builtins.slice": _slice, "builtins.list": _sequence,
        "builtins.tuple": lambda context, args: tuple(_sequence(context, args)),
        "builtins.dict": lambda context, args: _filled(context, {}, args),
        "builtins.getattr": _getattr,
        "_codecs.encode": _encode, "torch.Size": _record("torch.Size"),
        "torch.device": _record("torch.device"), "torch._C.Generator": _record("torch.Generator"),
        "torch.serialization._get_layout": _get_layout,
        "torch.storage._load_from_bytes": _load_from_bytes,
        "torch.nn.parameter.Buffer": lambda context, args: pickle_tensors.unset(context, args),
    }  # fmt: skip
    table["torch.nested._internal.nested_tensor._rebuild_njt"] = pickle_layouts.rebuild_jagged
    table["torch.jit._pickle.restore_type_tag"] = _restore_type_tag
    for kind in ("int", "tensor", "double", "bool"):
        table[f"torch.jit._pickle.build_{kind}list"] = _script_list
    for module in ("torch._utils.", "torch.tensor.", "torch._tensor."):
        table |= {
            module + "_rebuild_from_type": _rebuild_from_type,
            module + "_rebuild_from_type_v2": _rebuild_from_type,
        }
    tensors: dict[str, Constructor] = {
        "_rebuild_tensor": pickle_tensors.rebuild_tensor,
        "_rebuild_tensor_v2": pickle_tensors.rebuild_tensor,
        "_rebuild_tensor_v3": pickle_tensors.rebuild_tensor_v3,
        "_rebuild_parameter": pickle_tensors.rebuild_parameter,
        "_rebuild_parameter_with_state": pickle_tensors.rebuild_parameter,
        "_rebuild_qtensor": pickle_layouts.rebuild_qtensor,
        "_rebuild_sparse_tensor": pickle_layouts.rebuild_sparse,
        "_rebuild_sparse_csr_tensor": pickle_layouts.rebuild_sparse,
        "_rebuild_meta_tensor_no_storage": pickle_layouts.rebuild_meta,
        "_rebuild_nested_tensor": pickle_layouts.rebuild_nested,
        "_rebuild_wrapper_subclass": pickle_layouts.rebuild_wrapper,
        "_rebuild_device_tensor_from_numpy": pickle_layouts.on_device,
        "_rebuild_device_tensor_from_cpu_tensor": pickle_layouts.on_device,
        "_rebuild_xla_tensor": pickle_layouts.on_device,
    }
    table |= {"torch._utils." + name: made for name, made in tensors.items()}
    for name in ("torch.nn.parameter.Parameter", "torch.nn.Parameter"):
        table[name] = pickle_tensors.parameter_of
    for name in ("UninitializedParameter", "UninitializedBuffer"):
        table["torch.nn.parameter." + name] = pickle_layouts.uninitialized
    table["torch.autograd.variable.Variable"] = pickle_tensors.unset
    for kind in ("Float", "Double", "Half", "Long", "Int", "Short", "Char", "Byte", "BFloat16"):
        table[f"torch.{kind}Tensor"] = table[f"torch.cuda.{kind}Tensor"] = pickle_tensors.unset
    for core in ("numpy.core.", "numpy._core."):
        table[core + "multiarray._reconstruct"] = pickle_numpy.reconstruct
        table[core + "multiarray.scalar"] = pickle_numpy.scalar
        table[core + "numeric._frombuffer"] = pickle_numpy.from_buffer
    table["numpy.dtype"] = pickle_numpy.dtype_record
    return table


CONSTRUCTORS: dict[str, Constructor] = _table()
