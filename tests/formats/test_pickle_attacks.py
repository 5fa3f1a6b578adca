"""Pickles made to run code, to exhaust the machine or to confuse: each a finding, nothing run.

The payloads are harmless: each would write a file that the tests then look for.
"""

import pickle
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from damage import check_findings
from told import told

from holdtrue.errors import HoldtrueError
from holdtrue.formats import plain_pickle
from holdtrue.formats.pickle_machine import walk
from holdtrue.formats.tree_walk import tensors_by_path
from holdtrue.limits import MIB, override
from holdtrue.records.inert import InertKey, NamedReference, Record


def command(canary: Path) -> bytes:
    return f"touch {canary}".encode()


def call(module: str, name: str, argument: bytes) -> bytes:
    head = f"c{module}\n{name}\n".encode()
    return head + b"(X" + struct.pack("<I", len(argument)) + argument + b"tR"


def text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def build_gadget(run: bytes) -> bytes:
    return (
        b"c__main__\nGadget\n)\x81}"
        + text(b"__setstate__")
        + b"cos\nsystem\nsb"
        + text(run)
        + b"b."
    )


CODE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "reduce": (lambda run: call("os", "system", run) + b".", "os.system"),
    "posix": (lambda run: call("posix", "system", run) + b".", "posix.system"),
    "eval": (lambda run: call("builtins", "eval", b"__import__('os').system('%s')" % run) + b".",
             "builtins.eval"),
    "python 2 eval": (lambda run: b"\x80\x02" + call("__builtin__", "eval", b"1") + b".",
                      "builtins.eval"),
    "subprocess": (lambda run: call("subprocess", "getoutput", run) + b".",
                   "subprocess.getoutput"),
    "inst": (lambda run: b"(" + text(run) + b"ios\nsystem\n.", "os.system"),
    "object": (lambda run: b"(cos\nsystem\n" + text(run) + b"o.", "os.system"),
    "object popped": (lambda run: b"(cos\nsystem\n" + text(run) + b"o0N.", "os.system"),
    "newobj": (lambda run: b"csubprocess\nPopen\n" + text(run) + b"\x85\x81.", "subprocess.Popen"),
    "newobj with keywords": (
        lambda run: b"csubprocess\nPopen\n)}" + text(b"args") + text(run) + b"s\x92.",
        "subprocess.Popen"),
    "stack global": (lambda run: b"\x8c\x02os\x8c\x06system\x93" + text(run) + b"\x85R.",
                     "os.system"),
    "stack global from the memo": (
        lambda run: b"\x8c\x06system\x94\x8c\x02os\x94h\x01h\x00\x93" + text(run) + b"\x85R.",
        "os.system"),
    "getattr": (lambda run: b"cbuiltins\ngetattr\ncos\nsystem\n0ctorch\nhub\n" + text(b"load")
                + b"\x86R" + text(run) + b"\x85R.", "torch.hub.load"),
    "getattr of a module": (
        lambda run: b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n" + text(b"os") + b"\x85R"
        + text(b"system") + b"tR" + text(run) + b"\x85R.", "builtins.__import__"),
    "dotted name": (lambda run: b"\x80\x04\x8c\x02os\x8c\x0bpath.os.sys\x93.", "os.path.os.sys"),
    "build gadget": (build_gadget, "os.system"),
    "pip": (lambda run: call("pip", "main", run) + b".", "pip.main"),
    "ctypes": (lambda run: call("ctypes", "CDLL", run) + b".", "ctypes.CDLL"),
    "pydoc": (lambda run: call("pydoc", "locate", run) + b".", "pydoc.locate"),
    "partial": (lambda run: b"cfunctools\npartial\ncos\nsystem\n\x85R.", "functools.partial"),
    "map": (lambda run: b"cbuiltins\nmap\ncos\nsystem\n](" + text(run) + b"e\x86R.", "os.system"),
    "torch.load": (lambda run: call("torch", "load", run) + b".", "torch.load"),
    "numpy": (lambda run: call("numpy.testing._private.utils", "runstring", run) + b".",
              "numpy.testing._private.utils.runstring"),
    "as a tensor's function": (
        lambda run: b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nctorch\nTensor\n"
        + text(run) + b"\x85}tR.", "os.system"),
    "as a default factory": (
        lambda run: b"ccollections\ndefaultdict\ncos\nabort\n\x85R.", "os.abort"),
    "attribute of a class": (
        lambda run: b"ctorch\nTensor\n}" + text(b"__del__") + b"cos\nsystem\nsb.", "os.system"),
    "item of a module": (
        lambda run: b"csys\nmodules\n" + text(b"os") + b"Ns.", "sys.modules"),
    "magic number computed": (
        lambda run: call("builtins", "exec", b"open('x','w')") + b".", "builtins.exec"),
}  # fmt: skip


@pytest.mark.parametrize("name", CODE)
def test_code_is_listed_and_not_run(name: str, tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    made, shown = CODE[name]
    stream = made(command(canary))
    path = tmp_path / "model.bin"
    path.write_bytes(stream)
    try:
        listed = plain_pickle.read(str(path)).about["would_run"]
    except HoldtrueError:
        listed = walk(stream, where="x", salvage=True).would_run
    assert not canary.exists()
    found = {op.name: op.severity for op in listed}
    assert found[shown] == "dangerous"


def test_payload_first_and_a_broken_stream_behind(tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    walked = walk(call("os", "system", command(canary)) + b"\xfe\xfe", where="x", salvage=True)
    assert [op.name for op in walked.would_run] == ["os.system", "os.system"]
    assert not canary.exists()


def doubling(width: int, depth: int, tail: bytes) -> bytes:
    """A list of `width` lists, each the same list of `width` lists, `depth` times."""
    stream = b"]" + tail + b"q\x00"
    for _ in range(depth):
        stream += b"0](" + b"h\x00" * width + b"eq\x00"
    return stream + b"."


def nested(opening: bytes, closing: bytes, depth: int) -> bytes:
    return opening * depth + b"N" + closing * depth + b"."


def colliding_ints(count: int) -> bytes:
    prime = (1 << 61) - 1
    keys = b"".join(pickle.dumps(prime * i, 2)[2:-1] + b"N" for i in range(1, count))
    return b"}(" + keys + b"u."


EXHAUSTING: dict[str, bytes] = {
    "lists doubling": doubling(10, 40, b""),
    "lists doubling over a tensor": doubling(
        10, 40, b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(ctorch\nfloat32\n))\x88tRa"),
    "long list at many places": b"](" + b"N" * 20_000 + b"eq\x000](" + b"h\x00" * 20_000 + b"e.",
    "lists in lists": nested(b"]", b"a", 100_000),
    "tuples in tuples": nested(b"", b"\x85", 100_000),
    "marks": b"(" * 200_000 + b".",
    "records in records": b"N" + b"\x85q\x000c__main__\nA\nh\x00\x81" * 20_000 + b".",
    "states in states": b"c__main__\nA\n)\x81" * 1000 + b"b" * 999 + b".",
    "calls of calls": b"c__main__\nf\n" + b")R" * 30_000 + b".",
    "long number": b"\x8b\xff\xff\xff\x7f.",
    "long text": b"\x8d" + b"\xff" * 8 + b".",
    "long bytes": b"\x8e" + b"\xff" * 8 + b".",
    "long bytearray": b"\x96" + b"\xff" * 8 + b".",
    "long frame": b"\x95" + b"\xff" * 8 + b"N.",
    "far memo slot": b"Nr\xff\xff\xff\xff.",
    "colliding integers": colliding_ints(20_000),
    "tuple that doubles as a key": b"}N" + b"q\x00h\x00\x86" * 60 + b"Ns.",
    "number of a million bits as a key": b"}\x8b\x00\x00\x02\x00" + b"\x01" * 131072
        + b"q\x01" + b"Ns" + b"h\x01Ns" * 2000 + b".",
    "one text encoded again and again": text(b"x" * MIB) + b"q\x00c_codecs\nencode\nq\x01"
        + b"](" + b"h\x01h\x00X\x06\x00\x00\x00latin1\x86R" * 3000 + b"e.",
    "one list copied again and again": b"](" + b"N" * 20_000 + b"eq\x00](" + b"cbuiltins\nlist\n"
        b"h\x00\x85R" * 1000 + b"e.",
    "one name made again and again": text(b"x" * MIB) + b"q\x00](" + b"h\x00h\x00\x93" * 3000
        + b"e.",
    "name that grows": b"ca\nb\n" + b"q\x00cbuiltins\ngetattr\nh\x00" + (b"X\x00\x00\x01\x00"
        + b"x" * 65536) + b"\x86R" + b".",
    "array of a huge shape": b"cnumpy.core.numeric\n_frombuffer\n(C\x08" + bytes(8)
        + b"U\x02f8J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86U\x01Ct\x52.",
    "text dtype of a gigabyte": b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n"
        b"U\x0aU999999999I0\nI1\n\x87RC\x04abcd\x86R.",
    "thousands of dimensions":
   b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(ctorch\nfloat32\n("
        + b"K\x01" * 40_000 + b"t)\x88tR.",
    "more elements than bytes in the world":
        b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(ctorch\nfloat32\n"
        b"(\x8a\x07" + b"\xff" * 6 + b"\x7f\x8a\x07" + b"\xff" * 6 + b"\x7ft)\x88tR.",
    "deque of no length": b"ccollections\ndeque\n]\x8a\x09" + b"\x00" * 8 + b"\x01\x86R.",
    "range without end": b"cbuiltins\nrange\n\x8a\x20" + b"\x7f" * 32 + b"\x85R.",
    "bytes from a number": b"cbuiltins\nbytes\nJ\xff\xff\xff\x7f\x85R.",
    "dict of itself": b"}q\x00K\x01h\x00s.",
    "list of itself a hundred thousand times": b"]q\x00(" + b"h\x00" * 20_000 + b"e.",
}  # fmt: skip


@pytest.mark.parametrize("name", EXHAUSTING)
def test_within_budget_of_time_and_memory(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.pkl"
    path.write_bytes(EXHAUSTING[name])
    tracemalloc.start()
    begin = time.process_time()
    try:
        with override(entries=50_000, pickle_bytes=16 * MIB):
            view = plain_pickle.read(str(path))
    except HoldtrueError as error:
        check_findings(error)
    else:
        assert len(view.tensors) < 300_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - begin < 20
    assert peak < 100 * MIB


def test_budgets_are_named() -> None:
    streams = {
        "opcodes": b"N0" * 600 + b"N.",
        "memo": b"N" + b"\x94" * 600 + b".",
        "entries": b"](" + b"K\x01" * 600 + b"e.",
        "value_depth": nested(b"]", b"a", 600),
    }
    for budget, stream in streams.items():
        with override(**{budget: 500}), pytest.raises(HoldtrueError) as caught:
            tensors_by_path(walk(stream, where="x").value, "x")
        (finding,) = caught.value.report.findings
        assert finding.code == "over-budget"
        assert f"HOLDTRUE_{budget.upper()}" in finding.fix


def test_keys_that_could_not_be_hashed_are_wrapped() -> None:
    (key,) = walk(EXHAUSTING["tuple that doubles as a key"], where="x").value
    assert isinstance(key, InertKey)
    (key,) = walk(b"}c__main__\nA\n)\x81]\x85bNs.", where="x").value
    assert told(key.value) == told(Record(class_name="__main__.A", state=([],)))


def test_arguments_that_make_no_sense_leave_a_record() -> None:
    walked = walk(b"ctorch._utils\n_rebuild_tensor_v2\nK\x01K\x02\x86R.", where="x")
    assert told(walked.value) == told(
        Record(class_name="torch._utils._rebuild_tensor_v2", args=(1, 2))
    )
    assert [f.code for f in walked.findings] == ["odd-arguments"]
    walked = walk(b"ccollections\ndefaultdict\ncos\nabort\n\x85R(K\x01K\x02u.", where="x")
    factory = NamedReference("os.abort")
    assert walked.value.args == (factory,)
    assert walked.value.items == [(1, 2)]


REFUSED = {
    "text that latin1 lacks": b"c_codecs\nencode\nX\x03\x00\x00\x00\xe2\x82\xacU\x06latin1\x86R.",
    "number too long for a float": b"cbuiltins\ncomplex\nL" + b"9" * 400 + b"L\n\x85R.",
    "dict of lists as keys": b"cbuiltins\ndict\n(]N\x86lq\x000](]N\x86e\x85R.",
    "long doubles": b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nU\x03f12I0\nI1\n\x87R"
    b"C\x0c123456789012\x86R.",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_constructor_refuses_stays_a_record(name: str) -> None:
    assert isinstance(walk(REFUSED[name], where="x").value, Record)


def test_random_opcodes_never_escape() -> None:
    """Streams of random opcodes with fitting arguments: a value or a finding, nothing else."""
    import random

    chance = random.Random(5)
    pieces = [
        b"(", b"N", b"K\x01", b"]", b"}", b")", b"\x8f", b"a", b"e", b"s", b"u", b"t", b"\x85",
        b"\x86", b"\x87", b"0", b"1", b"2", b"R", b"b", b"o", b"\x81", b"\x92", b"\x90", b"\x91",
        b"\x93", b"Q", b"h\x00", b"q\x00", b"\x94", b"d", b"l", b"U\x01a", b"C\x01a", b"\x97",
        b"\x98", b"ccollections\nOrderedDict\n", b"cbuiltins\nset\n", b"ctorch\nFloatStorage\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n", b"cnumpy.core.multiarray\n_reconstruct\n",
        b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"ctorch\nfloat32\n", b"ccollections\ndeque\n",
        b"ccollections\ndefaultdict\n", b"ctorch._tensor\n_rebuild_from_type_v2\n",
        b"ctorch._utils\n_rebuild_parameter\n", b"c__main__\nA\n", b"\x88", b"I5\n",
        b"ctorch._utils\n_rebuild_qtensor\n", b"cbuiltins\ngetattr\n", b"c_codecs\nencode\n",
        b"ccopyreg\n_reconstructor\n", b"cbuiltins\ntype\n", b"ccollections\nCounter\n",
    ]  # fmt: skip
    finished = 0
    for _ in range(20_000):
        stream = b"".join(chance.choices(pieces, k=chance.randrange(1, 30))) + b"."
        try:
            walked = walk(stream, where="x")
            tensors_by_path(walked.value, "x")
        except HoldtrueError as error:
            check_findings(error)
        else:
            finished += 1
        walk(stream[:-1], where="x", salvage=True)
    assert finished > 500
