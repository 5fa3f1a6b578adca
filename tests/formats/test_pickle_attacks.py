"""What the walker says of the pickles in `tests/attacks`: what they would run, which budget."""

from pathlib import Path

import pytest
from damage import check_findings
from told import told

from attacks.families.pickles_that_exhaust import EXHAUSTING, nested
from attacks.families.pickles_that_run import CODE, call
from holdtrue.errors import HoldtrueError
from holdtrue.formats.pickle_machine import walk
from holdtrue.formats.tree_walk import tensors_by_path
from holdtrue.limits import override
from holdtrue.records.inert import InertKey, NamedReference, Record


# The streams are of the corpus, where each goes through everything else, too.
@pytest.mark.parametrize("name", CODE)
def test_code_is_listed_by_its_name(name: str) -> None:
    made, shown = CODE[name]
    listed = walk(made(b"true"), where="x", salvage=True).would_run
    found = {op.name: op.severity for op in listed}
    assert found[shown] == "dangerous"


def test_payload_first_and_a_broken_stream_behind(tmp_path: Path) -> None:
    canary = tmp_path / "ran"
    walked = walk(
        call("os", "system", b"touch " + bytes(canary)) + b"\xfe\xfe", where="x", salvage=True
    )
    assert [op.name for op in walked.would_run] == ["os.system", "os.system"]
    assert not canary.exists()


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
