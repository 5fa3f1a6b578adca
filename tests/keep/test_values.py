"""Plain values and objects: `open(save(x)) == x` with equal types, or refused with their paths."""

import argparse
import contextlib
import dataclasses
import enum
import random
import struct
import subprocess
import sys
import tempfile
import threading
import types
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from msgspec.structs import replace
from same import same

import holdtrue
from holdtrue.limits import override
from holdtrue.records.inert import Record
from holdtrue.records.manifest import NAME, Part, decode_manifest, encode_manifest
from holdtrue.saving import save


def kept(value: Any, trust: Any = ()) -> Any:
    """What opening gives for what saving took."""
    with tempfile.TemporaryDirectory() as place:
        holdtrue.save(f"{place}/c", part=value)
        return holdtrue.open(f"{place}/c", trust=trust)["part"]


def refusals(tmp_path: Path, **parts: Any) -> dict[str, str]:
    """where → what, of a save that must leave nothing behind."""
    with pytest.raises(holdtrue.SaveError) as caught:
        holdtrue.save(tmp_path / "refused", **parts)
    assert list(tmp_path.iterdir()) == []
    return {f.where: f.what for f in caught.value.report.findings}


# -- the property ------------------------------------------------------------------------

Point = namedtuple("Point", "x y")


class Typed(NamedTuple):
    name: str
    value: Any = None


class Colour(enum.Enum):
    RED = "red"
    PAIR = (1, 2)


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 1 << 70


class Flags(enum.Flag):
    A = 1
    B = 2
    C = 4


class Word(enum.StrEnum):
    HI = "hi"


@dataclasses.dataclass
class Plain:
    a: Any
    b: Any = 3


@dataclasses.dataclass(frozen=True)
class Frozen:
    a: Any


@dataclasses.dataclass(slots=True)
class Slotted:
    a: Any
    b: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class FrozenSlotted:
    a: Any


class MyInt(int):
    pass


class MyList(list):
    pass


class MyDict(dict):
    pass


TRUSTED = [Point, Typed, Colour, Level, Flags, Word, Plain, Frozen, Slotted, FrozenSlotted,
           MyInt, MyList, MyDict]  # fmt: skip

_doubles = st.integers(0, 2**64 - 1).map(lambda n: struct.unpack("<d", struct.pack("<Q", n))[0])
_text = st.text(st.characters(), max_size=6) | st.sampled_from(["\ud800", "$", "$ref", "", "a/b"])
_offsets = st.builds(timedelta, minutes=st.integers(-1439, 1439), seconds=st.integers(0, 59))
_zones = (
    st.just(UTC)
    | st.builds(timezone, _offsets)
    | st.builds(timezone, _offsets, st.text("ABC+-", min_size=1, max_size=4))
    | st.sampled_from(["UTC", "Europe/Berlin", "America/New_York"]).map(ZoneInfo)
)
_dtypes = [v for v in vars(torch).values() if isinstance(v, torch.dtype)]
hashable: Any = st.deferred(lambda: _hashable)
_hashable = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | _text
    | st.binary(max_size=8)
    | st.dates()
    | st.datetimes(timezones=st.none() | _zones, allow_imaginary=False)
    | st.times(timezones=st.none() | st.just(UTC))
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.fractions()
    | st.uuids()
    | st.sampled_from([Path("a/b"), PurePosixPath("/x"), PureWindowsPath("C:/x\\y"), Path()])
    | st.builds(range, st.integers(), st.integers(), st.integers(1, 9))
    | st.sampled_from([..., *Colour, *Level, *Word, Flags.A, Flags.A | Flags.C, Flags(0)])
    | st.sampled_from([*_dtypes, torch.strided, torch.sparse_coo, torch.channels_last])
    | st.sampled_from([torch.device("cpu"), torch.device("cuda:3"), torch.device("meta")])
    | st.lists(st.integers(0, 9), max_size=4).map(torch.Size)
    | st.integers(-9, 9).map(MyInt)
)
keys: Any = st.deferred(lambda: _keys)
_keys = hashable | st.tuples(hashable, hashable) | st.frozensets(st.integers(), max_size=3)
_keys = _keys | st.builds(Frozen, st.integers()) | st.builds(Point, st.integers(), _text)
numpy_scalars = st.sampled_from(
    [np.bool_, np.int8, np.uint16, np.int64, np.uint64, np.float16, np.float32, np.float64,
     np.longdouble, np.complex64, np.clongdouble, np.dtype("M8[ns]"), np.dtype("m8[3D]"),
     np.dtype(">f4"), np.dtype("V3"), np.dtype([("a", "<i2"), ("b", ">f8", (2,))])]
).flatmap(
    lambda kind: st.binary(min_size=np.dtype(kind).itemsize, max_size=np.dtype(kind).itemsize).map(
        lambda raw: np.frombuffer(
            bytes(b & 1 for b in raw) if kind is np.bool_ else raw, kind
        ).copy()[0]
    )
) | st.sampled_from([np.str_(""), np.str_("é\0"), np.bytes_(b"a\0"), np.bytes_(b"")])  # fmt: skip
arrays = hnp.arrays(
    hnp.scalar_dtypes()
    | hnp.unicode_string_dtypes(max_len=3)
    | hnp.byte_string_dtypes(max_len=3)
    | hnp.nested_dtypes(max_itemsize=40, max_leaves=5),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
).map(lambda a: a if type(a) is np.ndarray else np.asarray(a))
leaves: Any = st.deferred(lambda: _leaves)
_leaves = (
    hashable
    | _doubles
    | st.builds(complex, _doubles, _doubles)
    | st.binary(max_size=9).map(bytearray)
    | st.decimals(allow_nan=True)
    | st.builds(slice, st.none() | st.integers(), st.none() | st.integers())
    | numpy_scalars
    | arrays
    | arrays.map(np.asfortranarray)
    | st.lists(_doubles, max_size=4).map(lambda v: torch.tensor(v, dtype=torch.float64))
)
# Deferred, since hypothesis prints strategies: a recursive one would print for ever.
values: Any = st.deferred(
    lambda: (
        leaves
        | leaves
        | st.lists(values, max_size=4)
        | st.lists(values, max_size=3).map(tuple)
        | st.sets(keys, max_size=4)
        | st.frozensets(keys, max_size=3)
        | st.dictionaries(_text, values, max_size=4)
        | st.dictionaries(keys, values, max_size=4)
        | st.dictionaries(keys, values, max_size=3).map(OrderedDict)
        | st.dictionaries(keys, values, max_size=3).map(lambda d: defaultdict(list, d))
        | st.dictionaries(keys, st.integers(), max_size=3).map(Counter)
        | st.builds(deque, st.lists(values, max_size=3), st.none() | st.integers(3, 9))
        | st.builds(Point, values, values)
        | st.builds(Typed, _text, values)
        | st.builds(Plain, values, values)
        | st.builds(Frozen, values)
        | st.builds(Slotted, values, values)
        | st.builds(FrozenSlotted, values)
        | st.builds(argparse.Namespace, x=values, y=values)
        | st.builds(types.SimpleNamespace, x=values)
        | st.lists(values, max_size=3).map(MyList)
        | st.dictionaries(_text, values, max_size=3).map(MyDict)
    )
)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(values)
def test_a_value_comes_back_equal_and_of_the_same_types(value: Any) -> None:
    back = kept(value, TRUSTED)
    assert same(value, back), (value, back)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(values)
def test_any_value_opens_without_trust_and_without_torch_kinds(value: Any) -> None:
    kept(value)


SPECIAL: dict[str, Any] = {
    "signalling nan": struct.unpack("<d", struct.pack("<Q", 0x7FF0000000000001))[0],
    "negative nan": struct.unpack("<d", struct.pack("<Q", 0xFFF8000000ABCDEF))[0],
    "infinities": [float("inf"), float("-inf"), -0.0, 5e-324, 1.7976931348623157e308],
    "whole floats": [1.0, 1e16, 1e22, 2.0**53, -3.0],
    "integers": [2**53, 2**53 + 1, -(2**63), 2**64, 10**400, -(10**400)],
    "keys in order": {3: 1, "3": 2, 3.5: 4, None: 5, (1, (2,)): 6, b"x": 7, "$": 8, "a": 9},
    "dollar keys": {"$": "int", "v": "0x1"},
    "nested dollar": {"$": {"$": {"$": []}}},
    "empty": [[], (), set(), frozenset(), {}, "", b"", bytearray(), deque(), OrderedDict()],
    "surrogates": ["\ud800", {"\udfff": "a\udc80b"}, Path("caf\udce9")],
    "ellipsis": [..., NotImplemented is None],
    "fold": [datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")), time(fold=1)],
    "timezones": [timezone(timedelta(seconds=-1)), timezone(timedelta(0), "here"), UTC],
    "decimals": [Decimal("sNaN12"), Decimal("-0E+9"), Decimal("1.10"), Decimal("-Infinity")],
    "moments": [date.min, datetime.max, timedelta.min, timedelta(microseconds=-1), time.max],
    "uuid": UUID(int=0),
    "fraction": Fraction(-(10**40), 3),
    "ranges": [range(0), range(5, -5, -2), range(10**30), slice(None), slice("a", [1], None)],
    "longdouble": np.longdouble("0.1"),
    "padded": np.zeros(3, np.dtype([("a", "u1"), ("b", "<f8")], align=True)),
    "titles": np.ones(2, np.dtype([(("Long title", "a"), "<i4"), ("b", "S3")])),
    "offsets": np.dtype({"names": ["x"], "formats": ["<i2"], "offsets": [6], "itemsize": 11}),
    "dtypes": [np.dtype(t) for t in ("<i4", ">f8", "M8[us]", "m8[7h]", "S0", "V4", "?", "U5")],
    "datetimes": np.array(["2020-01-01", "NaT"], "M8[D]"),
    "big endian": np.arange(6, dtype=">i4").reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
    "0-d arrays": [np.array(1.5), np.array("x"), np.array(b"ab\0")],
    "empty arrays": [np.zeros((0, 3)), np.zeros((2, 0, 2), "M8[s]"), np.zeros(3, "S0")],
    "strided array": np.arange(20)[3:17:3],
    "negative stride": np.arange(6)[::-1],
    "torch": [torch.float8_e4m3fn, torch.device("cuda", 1), torch.Size([2, 0]), torch.Size([])],
    "formats": [torch.strided, torch.sparse_csr, torch.preserve_format, torch.channels_last_3d],
    "generators": [torch.Generator().manual_seed(3), random.Random(5), np.random.default_rng(2)],
    "bit generators": [np.random.MT19937(1), np.random.Philox(2), np.random.SFC64(3),
                       np.random.PCG64DXSM(4), np.random.RandomState(5),
                       np.random.Generator(np.random.Philox(8))],
    "factories": [defaultdict(None, a=1), defaultdict(int, {2: 3}), defaultdict(OrderedDict)],
    "metadata": torch.nn.Linear(2, 2).state_dict(),
    "flags": [Flags.A | Flags.B, Flags(0), ~Flags.A],
    "bounded": deque([1, 2], maxlen=2),
    "windows": PureWindowsPath("C:\\a"),
    "nested set": {frozenset({frozenset(), (1, frozenset({2}))})},
    "random mid-way": [random.Random(1).gauss(0, 1) or 0, np.float32("nan")],
}  # fmt: skip


@pytest.mark.parametrize("name", SPECIAL)
def test_special_values_come_back_exactly(name: str) -> None:
    back = kept(SPECIAL[name], TRUSTED)
    assert same(SPECIAL[name], back), back


def test_generators_continue_where_they_were() -> None:
    python, legacy, new = random.Random(1), np.random.RandomState(2), np.random.default_rng(3)
    torches = torch.Generator().manual_seed(4)
    python.gauss(0, 1), legacy.normal(), new.integers(0, 9, dtype=np.int8)  # half of a pair is left
    back = kept([python, legacy, new, torches])

    def draws(p: Any, n: Any, g: Any, t: Any) -> Any:
        return (p.gauss(0, 1), n.normal(), g.integers(0, 99, 5, dtype=np.int8).tolist(),
                torch.rand(3, generator=t).tolist())  # fmt: skip

    assert draws(*back) == draws(python, legacy, new, torches)


# -- references --------------------------------------------------------------------------


def test_what_was_one_object_is_one_again() -> None:
    inner, array, packed = [1], np.arange(3), np.zeros(2, [("a", "<i4")])
    generator, text, tensor = torch.Generator(), bytearray(b"x"), torch.ones(2)
    one = [inner, array, packed, generator, text, tensor, {1}, random.Random(3), Plain(1)]
    back = kept({"a": one, "b": list(one), "t": tuple(one)}, TRUSTED)
    for x, y, z in zip(back["a"], back["b"], back["t"], strict=True):
        assert x is y is z
    assert back["a"] is not back["b"]
    assert same(back["t"][:-1], tuple(one[:-1]))


def test_cycles_come_back() -> None:
    ring: list[Any] = [1]
    ring.append({"ring": ring, "t": (ring,)})
    plain = Plain(ring)
    plain.b = plain
    back = kept({"ring": ring, "plain": plain}, [Plain])
    assert back["ring"][1]["ring"] is back["ring"]
    assert back["ring"][1]["t"][0] is back["ring"]
    assert back["plain"].b is back["plain"]
    assert back["plain"].a is back["ring"]


def test_equal_but_separate_values_stay_separate() -> None:
    back = kept([[1], [1], {}, {}])
    assert back[0] is not back[1]
    assert back[2] is not back[3]


# -- objects -----------------------------------------------------------------------------


class Stateful:
    def __init__(self, mean: Any = 0) -> None:
        self.mean = mean

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean = state["mean"]


class Pickling:
    def __init__(self, words: list[str]) -> None:
        self.words, self.cache = words, {w: i for i, w in enumerate(words)}

    def __getstate__(self) -> Any:
        return {"words": self.words}

    def __setstate__(self, state: Any) -> None:
        self.__init__(state["words"])  # type: ignore[misc]


class Attributes:
    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)


class Slots:
    __slots__ = ("a", "b", "unset")

    def __init__(self, a: Any, b: Any) -> None:
        self.a, self.b = a, b


class Both(Slots):  # slots above, a dict below
    pass


def objects(seed: int) -> dict[str, Any]:
    both = Both(seed, [seed])
    both.extra = {"n": seed}
    tensor = torch.full((3,), float(seed))
    return {
        "stateful": Stateful([tensor, seed]),
        "pickling": Pickling([f"w{seed}", "x"]),
        "attributes": Attributes(mean=np.full(2, seed), inner=Attributes(deep=(seed,)), t=tensor),
        "slots": Slots(seed, {"b": tensor}),
        "both": both,
        "dataclass": Plain(tensor, {"s": {seed}}),
        "slotted": Slotted(seed, [Frozen(seed)]),
        "mylist": MyList([seed, tensor]),
        "mydict": MyDict(a=seed),
        "bytes": bytearray(str(seed).encode()),
        "drawn": np.random.default_rng(seed),
        "gen": torch.Generator().manual_seed(seed),
        "py": random.Random(seed),
        "array": np.full((2, 2), seed),
        "dict": {"o": Attributes(n=seed), "v": seed},
        "deque": deque([seed], maxlen=4),
        "set": {seed},
    }


ALL = [Stateful, Pickling, Attributes, Slots, Both, Plain, Slotted, Frozen, MyList, MyDict]


def described(value: Any) -> Any:
    """A comparable picture of an object of the classes above."""
    if isinstance(value, (Stateful, Pickling, Attributes, Slots, Plain, Slotted, Frozen)):
        names = [*getattr(value, "__dict__", {}), *getattr(type(value), "__slots__", ())]
        names += ["a", "b"] if isinstance(value, Both) else []
        found = {n: getattr(value, n) for n in sorted(set(names)) if hasattr(value, n)}
        return type(value).__name__, {k: described(v) for k, v in found.items()}
    if isinstance(value, dict):
        return type(value), {k: described(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, deque)):
        return type(value), [described(v) for v in value]
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, torch.Generator):
        return value.get_state().tolist()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.Generator):
        return value.bit_generator.state
    return value


def test_objects_come_back_into_live_ones_and_stay_themselves(tmp_path: Path) -> None:
    saved, live = objects(1), objects(2)
    identities = {name: id(value) for name, value in live.items()}
    holdtrue.save(tmp_path / "c", **saved)
    holdtrue.open(tmp_path / "c").restore(**live, trust=[Frozen])
    assert {name: id(value) for name, value in live.items()} == identities
    for name in saved:
        assert described(live[name]) == described(saved[name]), name
    assert live["pickling"].cache == {"w1": 0, "x": 1}


def test_objects_of_trusted_classes_are_built(tmp_path: Path) -> None:
    saved = objects(1)
    holdtrue.save(tmp_path / "c", **saved)
    opened = holdtrue.open(tmp_path / "c", trust=ALL)
    for name in saved:
        assert described(opened[name]) == described(saved[name]), name
    by_package = holdtrue.open(tmp_path / "c", trust=[__name__])
    assert described(by_package["attributes"]) == described(saved["attributes"])


def test_without_trust_an_object_is_an_inert_record(tmp_path: Path) -> None:
    ran = []

    class Loud(Attributes):
        def __setstate__(self, state: Any) -> None:
            ran.append(state)

    holdtrue.save(
        tmp_path / "c", a=Attributes(x=1, y=[2]), p=Point(1, 2), e=Colour.RED, l=Loud(z=1)
    )
    opened = holdtrue.open(tmp_path / "c")
    record = opened["a"]
    assert isinstance(record, Record)
    assert record.class_name == f"{__name__}.Attributes"
    assert record.state == {"x": 1, "y": [2]}
    assert opened["p"].items == {"x": 1, "y": 2}
    assert opened["e"].args == ("RED",)
    assert isinstance(opened["l"], Record)
    assert ran == []


def test_an_object_is_not_restored_into_another_class(tmp_path: Path) -> None:
    holdtrue.save(tmp_path / "c", a=Attributes(x=1))
    target = Plain(5)
    with pytest.raises(holdtrue.RestoreError) as caught:
        holdtrue.open(tmp_path / "c").restore(a=target)
    assert [f.code for f in caught.value.report.errors] == ["part-kind-changed"]
    assert target == Plain(5)


def test_a_fixed_value_is_not_taken_for_another(tmp_path: Path) -> None:
    holdtrue.save(tmp_path / "c", n=MyInt(5), d={"n": MyInt(5)}, plain=7)
    opened = holdtrue.open(tmp_path / "c")
    for live in ({"n": MyInt(6)}, {"d": {"n": MyInt(6)}}, {"plain": 8}):
        with pytest.raises(holdtrue.RestoreError):
            opened.restore(**live)
    opened.restore(n=MyInt(5), plain=7)
    holder = {"n": MyInt(6)}
    opened.restore(d=holder, trust=[MyInt])
    assert same(holder, {"n": MyInt(5)})


def test_two_saved_objects_never_go_into_one_live_object(tmp_path: Path) -> None:
    holdtrue.save(tmp_path / "c", pair=[Attributes(x=1), Attributes(x=2)])
    one = Attributes(x=0)
    live = [one, one]
    with pytest.raises(holdtrue.RestoreError):
        holdtrue.open(tmp_path / "c").restore(pair=live)
    assert live == [one, one]
    assert one.x == 0
    holdtrue.open(tmp_path / "c").restore(pair=live, trust=[Attributes])
    assert [o.x for o in live] == [1, 2]


def test_a_live_object_that_fails_half_way_is_put_back(tmp_path: Path) -> None:
    class Fragile(Attributes):
        def __setstate__(self, state: Any) -> None:
            vars(self).clear()
            if "bomb" in state:
                raise RuntimeError("no")
            vars(self).update(state)

    holdtrue.save(tmp_path / "c", first=Attributes(x=1), last=Fragile(bomb=1), words={"a": 1})
    first, last, words = Attributes(x=9), Fragile(y=8), {"b": 2}
    with pytest.raises(holdtrue.RestoreError) as caught:
        holdtrue.open(tmp_path / "c").restore(first=first, last=last, words=words)
    assert caught.value.report.errors[0].code == "target-refused"
    assert (vars(first), vars(last), words) == ({"x": 9}, {"y": 8}, {"b": 2})


def test_fitted_scikit_learn_objects_come_back_into_fresh_ones(tmp_path: Path) -> None:
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    rng = np.random.default_rng(0)
    data, words = rng.normal(3, 2, (50, 4)), np.array([["a"], ["b"], ["a"], ["c"]])
    scaler = preprocessing.StandardScaler().fit(data)
    encoder = preprocessing.OneHotEncoder(handle_unknown="ignore").fit(words)
    quantiles = preprocessing.QuantileTransformer(n_quantiles=10, random_state=0).fit(data)
    holdtrue.save(tmp_path / "c", scaler=scaler, encoder=encoder, quantiles=quantiles)
    fresh = {
        "scaler": preprocessing.StandardScaler(),
        "encoder": preprocessing.OneHotEncoder(),
        "quantiles": preprocessing.QuantileTransformer(),
    }
    holdtrue.open(tmp_path / "c").restore(**fresh)
    assert np.array_equal(fresh["scaler"].transform(data), scaler.transform(data))
    assert np.array_equal(
        fresh["encoder"].transform([["c"], ["z"]]).toarray(),
        encoder.transform([["c"], ["z"]]).toarray(),
    )
    assert np.array_equal(fresh["quantiles"].transform(data), quantiles.transform(data))


def test_a_tokenizer_comes_back_into_a_live_one(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")

    def tokenizer(words: list[str]) -> Any:
        vocabulary = {w: i for i, w in enumerate(["[UNK]", "[PAD]", *words])}
        core = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
        core.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=core, unk_token="[UNK]", pad_token="[PAD]"
        )

    saved, live = tokenizer(["hold", "true"]), tokenizer(["other"])
    live.padding_side = "left"
    holdtrue.save(tmp_path / "c", tokenizer=saved)
    holdtrue.open(tmp_path / "c").restore(tokenizer=live)
    text = ["hold true nothing", "true"]
    assert dict(live(text, padding=True)) == dict(saved(text, padding=True))
    assert live.padding_side == saved.padding_side


# -- refusals ----------------------------------------------------------------------------


def test_what_cannot_be_kept_is_refused_with_every_path_before_a_byte(tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(250):
        deep = [deep]
    cycle: Any = ([],)
    cycle[0].append(cycle)
    with (tmp_path.parent / f"{tmp_path.name}-file").open("w") as file:
        found = refusals(
            tmp_path,
            config={"fn": lambda x: x, "deep": {"lock": [0, threading.Lock()]}, "ok": 1},
            other=Attributes(file=file, gen=(i for i in ()), named=len, module=types),
            arrays=[np.array([{}], object), np.array(1, object), np.zeros(2, [("a", "O")])],
            deep=deep,
            cycle=cycle,
            named=[print, struct.Struct("i"), Counter.update],
            strings=np.array(["a"], np.dtypes.StringDType()),
            matrix=np.asmatrix([1, 2]),
        )
    wanted = {
        "config/fn", "config/deep/lock[1]", "other/file", "other/gen", "other/module",
        "arrays/[0]", "arrays/[1]", "arrays/[2]", "cycle/[0][0]", "named/[0]", "named/[1]",
        "named/[2]", "strings/", "matrix/",
    }  # fmt: skip
    assert wanted <= set(found)
    assert any(where.startswith("deep/[0][0]") for where in found)
    assert len(found) == len(wanted) + 1
    assert all(found.values())


def test_objects_whose_own_code_fails_are_refused(tmp_path: Path) -> None:
    class Broken:
        def __getstate__(self) -> Any:
            raise RuntimeError("not now")

    class BrokenState(Stateful):
        def state_dict(self) -> Any:
            raise KeyError("nor now")

    assert set(refusals(tmp_path, a=Broken(), b=[BrokenState()])) == {"a/", "b/[0]"}


def test_nesting_past_the_callers_own_stack_is_refused_not_crashed(tmp_path: Path) -> None:
    value: Any = 1
    for _ in range(190):
        value = Plain([value])

    def descend(levels: int) -> Any:
        return descend(levels - 1) if levels else refusals(tmp_path, deep=value)

    with override(value_depth=5000):
        assert descend(sys.getrecursionlimit() - 500)


# -- hostile files -----------------------------------------------------------------------


def deep_node(levels: int, inner: Any = 1) -> Any:
    for _ in range(levels):
        inner = {"$": "tuple", "v": [inner]}
    return inner


def doubling(kind: str, levels: int = 60) -> Any:
    """A small file in which each level holds the one before twice."""
    nodes: list[Any] = [{"$": kind, "id": 1, "v": []}]
    for i in range(2, levels):
        pair = [{"$": "ref", "id": i - 1}, {"$": "ref", "id": i - 1}]
        nodes.append({"$": kind, "id": i, "v": pair})
    return nodes


_B64 = "AAAAAAAAAAA="
HOSTILE: dict[str, Any] = {
    "unknown kind": {"$": "pickle", "v": ""},
    "kind is a list": {"$": [], "v": 1},
    "kind is null": {"$": None},
    "no payload": {"$": "int"},
    "int of words": {"$": "int", "v": "zz"},
    "int of a list": {"$": "int", "v": [1]},
    "bad base64": {"$": "bytes", "v": "!!!"},
    "odd hex": {"$": "str", "v": "abc"},
    "no text": {"$": "str", "v": "ff"},
    "short nan": {"$": "float", "v": "nan:00"},
    "complex of one": {"$": "complex", "v": [1]},
    "deep": deep_node(300),
    "deep lists": [[[[[[deep_node(196)]]]]]],
    "ref to nowhere": {"$": "ref", "id": 7},
    "ref to a later": [{"$": "ref", "id": 1}, {"$": "list", "id": 1, "v": []}],
    "ref without id": {"$": "ref"},
    "ref of a list": {"$": "ref", "id": [1]},
    "shared tuple": {"$": "tuple", "id": 1, "v": []},
    "shared int": {"$": "int", "id": 1, "v": "0x1"},
    "id is a list": {"$": "list", "id": [], "v": []},
    "doubling tuples": doubling("tuple"),
    "unhashable key": {"$": "dict", "v": [[[1], 2]]},
    "pair of three": {"$": "dict", "v": [[1, 2, 3]]},
    "pairs are numbers": {"$": "dict", "v": 5},
    "set of lists": {"$": "set", "v": [[1]]},
    "unknown factory": {"$": "defaultdict", "factory": "exec", "v": []},
    "deque of words": {"$": "deque", "maxlen": "x", "v": []},
    "huge deque": {"$": "deque", "maxlen": 1 << 52, "v": "x", "attributes": 1},
    "range of text": {"$": "range", "v": ["a", 1, 2]},
    "range of one": {"$": "range", "v": []},
    "date of number": {"$": "date", "v": 5},
    "no date": {"$": "date", "v": "yesterday"},
    "zone of text": {"$": "datetime", "v": "2020-01-01", "tz": "Europe"},
    "offset too far": {"$": "timezone", "v": [[999, 0, 0], None]},
    "endless delta": {"$": "timedelta", "v": [10**12, 0, 0]},
    "uuid of number": {"$": "uuid", "v": 5},
    "uuid of text": {"$": "uuid", "v": "x"},
    "fraction by zero": {"$": "fraction", "v": ["0x1", "0x0"]},
    "no decimal": {"$": "decimal", "v": "one"},
    "path kind": {"$": "path", "v": ["os.system", "x"]},
    "path of number": {"$": "path", "v": 3},
    "zone directory": {"$": "zoneinfo", "v": 5},
    "scalar of objects": {"$": "scalar", "v": ["|O", _B64]},
    "scalar of fields": {"$": "scalar", "v": ["i4,(2)i4", _B64]},
    "scalar too short": {"$": "scalar", "v": ["<f8", ""]},
    "huge scalar": {"$": "scalar", "v": ["|V999999999", _B64]},
    "dtype of objects": {"$": "np.dtype", "v": {"names": ["a"], "formats": ["|O"],
                                               "offsets": [0], "itemsize": 8}},
    "dtype overlaps itself": {"$": "np.dtype", "v": {"names": ["a"], "formats": ["<i8"],
                                                    "offsets": [4], "itemsize": 8}},
    "negative shape": {"$": "np.dtype", "v": {"base": "<i4", "shape": [-1]}},
    "unknown torch dtype": {"$": "dtype", "v": "load"},
    "torch dtype of list": {"$": "dtype", "v": ["x"]},
    "no device": {"$": "device", "v": "abacus"},
    "layout is a function": {"$": "layout", "v": "load"},
    "size of text": {"$": "size", "v": ["a"]},
    "generator of nothing": {"$": "generator", "v": ["cpu", ""]},
    "generator too short": {"$": "generator", "v": ["cpu", _B64]},
    "generator of numbers": {"$": "generator", "v": [1, 2]},
    "random of nothing": {"$": "random", "v": [3, "", None]},
    "random version": {"$": "random", "v": [9, _B64, None]},
    "bits unknown": {"$": "np.random", "class": "Generator", "bits": "os", "v": {}},
    "bits state wrong": {"$": "np.random", "class": "Generator", "bits": "PCG64",
                         "v": {"state": 1}},
    "tensor unknown": {"$": "tensor", "v": "part/none"},
    "tensor is a list": {"$": "tensor", "v": []},
    "namedtuple of text": {"$": "namedtuple", "class": "x.Y", "v": "abc"},
    "enum without class": {"$": "enum", "name": "A", "v": 1},
    "object without class": {"$": "object", "via": "dict"},
    "class of list": {"$": "class", "v": [1, 2]},
    "class of number": {"$": "class", "v": 5},
    "namespace of list": {"$": "namespace", "v": [1]},
    "attributes of a list": {"$": "odict", "v": [], "attributes": [1]},
    "attributes of a dict": {"$": "dict", "v": [], "attributes": {"a": 1}},
}  # fmt: skip
HARMLESS = {"zone elsewhere": {"$": "zoneinfo", "v": "../../etc/passwd"},
            "zone is a directory": {"$": "zoneinfo", "v": "America"},
            "doubling lists": doubling("list"),
            "object that is unknown": {"$": "object", "class": "os.system", "via": "setstate",
                                       "args": ["x"], "state": "y"},
            "class unknown": {"$": "class", "v": "os.system"},
            "callable": {"$": "callable", "v": "os.system"}}  # fmt: skip


def planted(place: Path, node: Any) -> Path:
    """A checkpoint that is whole but for one node that nobody would write."""
    save(place, part=1)
    path = place / NAME
    manifest = decode_manifest(path.read_bytes(), str(path))
    parts = {**manifest.parts, "part": Part(kind="value", class_name="x.Y", state=node)}
    path.write_bytes(encode_manifest(replace(manifest, parts=parts)))
    return place


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_nodes_end_in_a_finding(tmp_path: Path, name: str) -> None:
    place = planted(tmp_path / "c", HOSTILE[name])
    with pytest.raises(holdtrue.HoldtrueError) as caught:
        holdtrue.open(place)["part"]
    assert caught.value.report.errors
    for live in (None, [], {}, Attributes(x=1), torch.Generator(), np.random.default_rng(0)):
        with pytest.raises(holdtrue.HoldtrueError):
            holdtrue.open(place).restore(part=live)


@pytest.mark.parametrize("name", HARMLESS)
def test_odd_nodes_stay_data(tmp_path: Path, name: str) -> None:
    place = planted(tmp_path / "c", HARMLESS[name])
    holdtrue.open(place)["part"]
    with pytest.raises(holdtrue.HoldtrueError):
        holdtrue.open(place).restore(part="another value")


json_nodes = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False)
    | st.text(max_size=5) | st.sampled_from(["0x10", _B64, "part/x", "<f8", "UTC", "cpu"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=2), inner, max_size=2)
    | st.builds(
        lambda kind, v, more: {**more, "$": kind, "v": v},
        st.sampled_from(
            ["int", "float", "complex", "str", "bytes", "bytearray", "path", "date", "timedelta",
             "timezone", "zoneinfo", "decimal", "fraction", "uuid", "ellipsis", "scalar",
             "np.dtype",
             "np.str", "np.bytes", "tensor", "list", "set", "frozenset", "tuple", "deque", "dict",
             "odict", "defaultdict", "counter", "range", "slice", "datetime", "time", "namespace",
             "class", "callable", "namedtuple", "enum", "object", "random", "np.random", "dtype",
             "device", "size", "layout", "memory_format", "generator", "ref"]
        ),
        inner,
        st.fixed_dictionaries(
            {},
            optional={"id": st.integers(1, 2), "class": st.just("a.B"), "via": st.just("dict"),
                      "state": inner, "name": st.just("A"), "factory": st.just("int"),
                      "bits": st.just("PCG64"), "maxlen": st.integers(0, 3), "args": inner,
                      "items": inner, "attributes": inner, "tz": inner, "dtype": inner},
        ),
    ),
    max_leaves=6,
)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(json_nodes)
def test_any_node_opens_or_ends_in_a_finding(node: Any) -> None:
    with tempfile.TemporaryDirectory() as place:
        planted(Path(place) / "c", node)
        # Anything but a HoldtrueError fails the test.
        with contextlib.suppress(holdtrue.HoldtrueError):
            holdtrue.open(f"{place}/c")["part"]
        with contextlib.suppress(holdtrue.HoldtrueError):
            holdtrue.open(f"{place}/c").restore(part={"a": [1]})


def test_values_without_tensors_need_no_torch(tmp_path: Path) -> None:
    holdtrue.save(tmp_path / "c", part={"a": [1, (2,)], "d": torch.float32, "n": np.float32(2)})
    code = (
        "import sys; sys.modules['torch'] = None; import holdtrue;"
        f"v = holdtrue.open({str(tmp_path / 'c')!r})['part'];"
        "assert v['a'] == [1, (2,)] and v['n'] == 2, v; print(v['d'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "torch.dtype" in done.stdout
