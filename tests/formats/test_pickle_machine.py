"""Every opcode of protocols 0 to 5 as data, equal to what pickle makes where pickle makes it."""

import enum
import pickle
import struct
from collections import OrderedDict, deque
from typing import Any

import numpy as np
import pytest
import torch
from damage import check_findings
from hypothesis import given, settings
from hypothesis import strategies as st
from same_as_torch import Compared, same
from told import told

from holdtrue.errors import DamageError, HoldtrueError
from holdtrue.formats import torch_zip
from holdtrue.formats.pickle_machine import Walked, walk
from holdtrue.formats.pickle_opcodes import OPCODES, read_opcodes
from holdtrue.formats.pickle_source import PickleSource
from holdtrue.formats.tensor_bytes import read_tensor
from holdtrue.records.inert import InertKey, NamedReference, Record


def value_of(data: bytes, **more: Any) -> Any:
    return walk(data, where="x", **more).value


def seen(data: bytes) -> Walked:
    return walk(data, where="x")


# Streams that pickle can run too: what they make must be the same, and of the same type.
PLAIN = {
    "protocol 0": b"(lp0\nI1\naI01\naI00\naF1.5\naL12345678901234567890L\naVtext\\u00e9\np1\na.",
    "python 2 text": b"(S'abc'\np0\nS\"d'e\"\nS'\\x41\\n'\nt.",
    "python 2 binary": b"U\x03abcT\x04\x00\x00\x00\xc3\xa9\xc3\xa9\x86.",
    "numbers": b"(J\xff\xff\xff\xffK\xffM\xff\xffG?\xf8\x00\x00\x00\x00\x00\x00\x8a\x02\xff\x7f"
               b"\x8b\x03\x00\x00\x00\x01\x02\x03\x8a\x00t.",
    "constants": b"(N\x88\x89)]}\x8ft.",
    "strings": b"(X\x02\x00\x00\x00\xc3\xa9\x8c\x01a\x8d\x01" + bytes(7) + b"bB\x01\x00\x00\x00cC"
               b"\x01d\x8e\x01" + bytes(7) + b"e\x96\x01" + bytes(7) + b"ft.",
    "tuples": b"K\x01\x85K\x01K\x02\x86K\x01K\x02K\x03\x87(K\x01t\x87.",
    "stack": b"K\x01K\x020(K\x01K\x021K\x052\x86.",
    "pop of a mark": b"K\x07(0.",
    "memo": b"]q\x00h\x00a]r\x05\x00\x00\x00j\x05\x00\x00\x00p9\ng9\n\x94h\x03\x86\x86.",
    "sets": b"\x8f(K\x01K\x02\x90(K\x03\x91\x86.",
    "dicts": b"(K\x01K\x02d}K\x03K\x04s}(K\x05K\x06K\x07K\x08u\x87.",
    "lists": b"(K\x01l]K\x02a](K\x03K\x04e\x87.",
    "frame": b"\x80\x04\x95\x04\x00\x00\x00\x00\x00\x00\x00K\x01\x85.",
    "bytes of protocol 2": b"\x80\x02c_codecs\nencode\nX\x02\x00\x00\x00\xc3\xbfX\x06\x00\x00\x00"
                           b"latin1\x86R.",
    "collections": b"ccollections\nOrderedDict\n)R(K\x01K\x02u.",
    "python 2 names": b"c__builtin__\nset\n((lI1\naI2\natR.",
}  # fmt: skip


# Streams that need something which is not there: classes, extensions, buffers, persistent ids.
INERT = {
    "python 2 instance": b"(i__main__\nOld\np0\n(dp1\nS'x'\nI5\nsb.",
    "python 2 object": b"(c__main__\nOld\nK\x01o.",
    "extensions": b"\x82\x05\x83\x05\x01\x84\x01\x02\x03\x00\x87.",
    "buffers": b"\x97\x98.",
    "persistent ids": b"Pone\n]Q\x86.",
    "new object": b"\x8c\x01a\x8c\x01B\x93)\x81.",
    "new object with keywords": b"ca\nB\n)}U\x01kK\x01s\x92.",
}


def test_every_opcode_has_a_stream(figure) -> None:
    streams = [*PLAIN.values(), *INERT.values()]
    names = {op.name for data in streams for op, _, _ in read_opcodes(PickleSource(data, "x"))}
    assert names == {opcode.name for opcode in OPCODES.values()}
    for data in streams:
        assert walk(data, where="x", persistent=str).complete
    figure("pickle opcodes interpreted", len(names))


@pytest.mark.parametrize("name", PLAIN)
def test_as_pickle_makes_it(name: str) -> None:
    theirs = pickle.loads(PLAIN[name], encoding="utf-8")
    ours = value_of(PLAIN[name])
    assert type(ours) is type(theirs)
    assert repr(ours) == repr(theirs)


class Colour(enum.Enum):
    RED = 1


class Slotted:
    __slots__ = ("a",)


class Keywords:
    def __new__(cls, *, size: int) -> "Keywords":
        return object.__new__(cls)

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, int]]:
        return (), {"size": 3}


class Inner:
    class Nested:
        pass


@pytest.mark.parametrize("protocol", range(6))
def test_objects_become_records(protocol: int) -> None:
    slotted = Slotted()
    slotted.a = [1]
    if protocol >= 2:
        record = value_of(pickle.dumps(slotted, protocol))
        assert told(record) == told(
            Record(class_name=f"{__name__}.Slotted", state=(None, {"a": [1]}))
        )
        record = value_of(pickle.dumps(Keywords(size=3), protocol))
        if protocol >= 4:
            assert record.kwargs == {"size": 3}
    plain = OrderedDict(a=1)
    plain.note = "kept"  # type: ignore[attr-defined]
    assert vars(value_of(pickle.dumps(plain, protocol))) == {"note": "kept"}
    record = value_of(pickle.dumps(Colour.RED, protocol))
    assert told(record) == told(Record(class_name=f"{__name__}.Colour", args=(1,)))
    nested = value_of(pickle.dumps(Inner.Nested, protocol))
    assert nested == NamedReference(f"{__name__}.Inner.Nested")


def test_a_class_of_python_2() -> None:
    record = value_of(INERT["python 2 instance"])
    assert told(record) == told(Record(class_name="__main__.Old", state={"x": 5}))
    record = value_of(INERT["python 2 object"])
    assert told(record) == told(Record(class_name="__main__.Old", args=(1,)))


def test_python_2_arrays_and_text_that_is_not_utf8() -> None:
    raw = np.array([1.5, -2.0], "<f8").tobytes()
    spelled = repr(raw)[1:].encode()
    stream = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\nt"
        b"cnumpy\ndtype\n(S'f8'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS"
        + spelled + b"\ntb."
    )  # fmt: skip
    tensor = value_of(stream)
    assert (tensor.dtype, tensor.shape) == ("float64", (2,))
    assert read_tensor(tensor).tobytes() == raw
    assert value_of(b"S'\\xff\\xfe'\n.") == b"\xff\xfe"


def test_extensions_buffers_and_persistent_ids() -> None:
    walked = seen(INERT["extensions"])
    assert walked.value[0] == NamedReference("copyreg.extension.5")
    assert len(walked.would_run) == 3
    assert value_of(INERT["buffers"]).class_name == "pickle.PickleBuffer"
    got = value_of(INERT["persistent ids"], persistent=lambda pid: ("loaded", pid))
    assert got == (("loaded", "one"), ("loaded", []))
    record = value_of(b"K\x07Q.")
    assert told(record) == told(Record(class_name="pickle.persistent_load", args=(7,)))


def test_cycles() -> None:
    ours = value_of(pickle.dumps(_cycle(), 2))
    assert ours["self"] is ours
    assert ours["list"][0] is ours["list"]
    record = value_of(b"\x80\x02c__main__\nNode\n)\x81q\x00}U\x04selfh\x00sb.")
    assert record.state["self"] is record


def _cycle() -> dict[str, Any]:
    loop: list[Any] = []
    loop.append(loop)
    tree: dict[str, Any] = {"list": loop}
    tree["self"] = tree
    return tree


def test_records_as_keys() -> None:
    walked = seen(pickle.dumps({Colour.RED: 1, (Colour.RED, 2): 3}, 4))
    first, second = walked.value
    assert isinstance(first, InertKey)
    assert first.value.class_name.endswith("Colour")
    assert second.value[0] is first.value


def test_state_of_a_dict_that_would_hide_its_methods() -> None:
    walked = seen(b"ccollections\nOrderedDict\n)R}U\x05itemsK\x01sb.")
    assert list(walked.value.items()) == []
    assert [f.code for f in walked.findings] == ["attribute-left-out"]


def test_parameters_as_torch_wrote_them_before_0_2(tmp_path) -> None:
    data = torch.arange(3.0)
    state = (data, None, OrderedDict(), True, False)
    old = Reduced((torch.nn.Parameter, (), state))
    plain = Reduced((torch.nn.Parameter, (data, False)))
    torch.save([old, plain], tmp_path / "x.pt")
    tree = torch_zip.read(str(tmp_path / "x.pt")).tree
    same(tree, torch.load(tmp_path / "x.pt", weights_only=False), Compared())


class Reduced:
    """Pickles as it is told."""

    def __init__(self, reduced: tuple[Any, ...]) -> None:
        self.reduced = reduced

    def __reduce_ex__(self, protocol: int) -> tuple[Any, ...]:
        return self.reduced


def test_names_that_cannot_be_printed() -> None:
    walked = seen(b"\x8c\x03\xed\xa0\x80\x8c\x01a\x93.")
    walked.value.name.encode()
    walked.would_run[0].name.encode()


def test_calls_of_what_a_call_gave() -> None:
    walked = seen(b"c__main__\nmake\n)RK\x01\x85R.")
    made = Record(class_name="__main__.make")
    assert told(walked.value) == told(Record(class_name="operator.call", args=(made, 1)))


def test_ends_after_stop_and_tells_the_protocol() -> None:
    walked = seen(b"\x80\x04K\x01.rest")
    assert (walked.value, walked.end, walked.protocol) == (1, 5, 4)


def test_places_and_counts_of_what_would_run() -> None:
    stream = b"}U\x01a(c__main__\nMake\n)Rc__main__\nMake\n)Rlsc__main__\nGone\n)R0."
    imported, called, gone, never = seen(stream).would_run
    assert (imported.name, imported.kind, imported.count) == ("__main__.Make", "import", 2)
    assert (called.kind, called.place, called.count) == ("call", "a/0", 2)
    assert (gone.name, never.place) == ("__main__.Gone", "")


SALVAGED = {
    "dict": {"a": 1, "b": [1, 2, {"c": 3}], "d": "e" * 10},
    "list": [[1, 2], [3, 4], {"x": (1, 2)}],
    "ordered": OrderedDict(a=OrderedDict(b=1, c=2), d=3),
}


@pytest.mark.parametrize("name", SALVAGED)
@pytest.mark.parametrize("protocol", range(6))
def test_salvage_at_every_byte(name: str, protocol: int) -> None:
    data = pickle.dumps(SALVAGED[name], protocol)
    sizes = []
    for length in range(len(data)):
        with pytest.raises(DamageError):
            walk(data[:length], where="x")
        walked = walk(data[:length], where="x", salvage=True)
        assert not walked.complete
        assert walked.findings[-1].code in ("pickle-truncated", "pickle-malformed")
        sizes.append(len(repr(walked.value)))
    assert walked.value == SALVAGED[name]  # all but the STOP
    half = walk(data[: len(data) * 3 // 4], where="x", salvage=True).value
    assert type(half) is type(SALVAGED[name])
    assert half


def test_salvage_keeps_the_state_of_an_object() -> None:
    class_line = b"\x80\x02c__main__\nNet\n)\x81}(U\x01aK\x01U\x01b](K\x02K\x03"
    walked = walk(class_line, where="x", salvage=True)
    assert told(walked.value) == told(
        Record(class_name="__main__.Net", state={"a": 1, "b": [2, 3]})
    )


BROKEN = {
    "nothing": b"",
    "no opcode": b"\xfe.",
    "empty stack": b".",
    "missing memo": b"h\x05.",
    "negative memo": b"K\x01p-1\n.",
    "mark missing": b"t.",
    "protocol": b"\x80\x06N.",
    "odd pairs": b"}(K\x01u.",
    "list as key": b"}]Ns.",
    "item of a list": b"]K\x00K\x00s.",
    "item of a tensor": b"K\x01K\x00K\x00s.",
    "global without a name": b"K\x01K\x02\x93.",
    "call without a tuple": b"c__main__\nf\nK\x01R.",
    "call of a number with keywords": b"K\x01)K\x01\x92.",
    "build of a number": b"K\x01}b.",
    "text that is not UTF-8": b"X\x01\x00\x00\x00\xff.",
    "quotes": b"S'abc\n.",
    "number": b"Iabc\n.",
    "5000 digits": b"I" + b"9" * 5000 + b"\n.",
    "line without end": b"Vabc",
    "append to nothing": b"(e.",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_streams_are_findings(name: str) -> None:
    with pytest.raises(DamageError) as caught:
        walk(BROKEN[name], where="the file")
    (finding,) = caught.value.report.findings
    assert finding.where.startswith("the file: byte ")
    assert finding.why
    walk(BROKEN[name], where="the file", salvage=True)


def test_numbers_at_their_limits() -> None:
    for number in (2**31 - 1, -(2**31), 2**2039, -(2**2040), 0, -1):
        assert value_of(pickle.dumps(number, 2)) == number
    assert value_of(b"G" + struct.pack(">d", 5e-324) + b".") == 5e-324


ATOMS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.text(),
    st.binary(), st.binary().map(bytearray), st.builds(range, st.integers(0, 9)),
)  # fmt: skip
KEYS = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.tuples(st.text()))
TREES = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner), st.lists(inner).map(tuple), st.dictionaries(KEYS, inner),
        st.dictionaries(KEYS, inner).map(OrderedDict), st.lists(inner).map(deque),
        st.sets(KEYS), st.frozensets(KEYS),
    ),
    max_leaves=30,
)  # fmt: skip


@given(TREES, st.integers(0, 5))
@settings(max_examples=300, deadline=None)
def test_any_tree_comes_back(tree: Any, protocol: int) -> None:
    ours = value_of(pickle.dumps(tree, protocol))
    assert type(ours) is type(tree)
    assert repr(ours) == repr(pickle.loads(pickle.dumps(tree, protocol)))


@given(st.binary(max_size=200))
@settings(max_examples=500, deadline=None)
def test_any_bytes_are_a_value_or_a_finding(data: bytes) -> None:
    try:
        walk(data, where="x")
    except HoldtrueError as error:
        check_findings(error)
    try:
        walk(data, where="x", salvage=True)
    except HoldtrueError as error:
        check_findings(error)
