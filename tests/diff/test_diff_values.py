"""Values and records beside the tensors."""

import collections
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import holdtrue
from holdtrue.doctor.tree_leaves import leaves
from holdtrue.doctor.value_difference import compare_values
from holdtrue.errors import OpenError
from holdtrue.limits import override
from holdtrue.records.inert import NamedReference, Record


def rows(a, b):
    left, right = leaves(a, "a"), leaves(b, "b")
    found = compare_values(left.values, right.values, [*left.tensors, *right.tensors])
    return [(row.path, row.kind, row.a, row.b) for row in found]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ({"x": 1}, {"x": 2}, [("x", "changed", "1", "2")]),
        ({"x": 1}, {"x": 1.0}, [("x", "changed", "1", "1.0")]),
        ({"x": 1}, {"x": True}, [("x", "changed", "1", "True")]),
        ({"x": "1"}, {"x": 1}, [("x", "changed", "'1'", "1")]),
        ({"x": b"a"}, {"x": "a"}, [("x", "changed", "b'a'", "'a'")]),
        ({"x": None}, {}, [("x", "removed", "None", None)]),
        ({}, {"x": 3}, [("x", "added", None, "3")]),
        ({"x": 0.0}, {"x": -0.0}, [("x", "changed", "0.0", "-0.0")]),
        ({"x": math.nan}, {"x": math.nan}, []),
        ({"x": 10**40}, {"x": 10**40}, []),
        ([1, 2], [1, 2, 3], [("", "changed", "list of 2", "list of 3"), ("2", "added", None, "3")]),
        ({"x": [1, [2]]}, {"x": [1, [5]]}, [("x/1/0", "changed", "2", "5")]),
        ({"x": [1]}, {"x": (1,)}, [("x", "changed", "list of 1", "tuple of 1")]),
        ({"x": {"a", "b"}}, {"x": {"b", "c"}},
         [("x/{a}", "removed", "'a'", None), ("x/{c}", "added", None, "'c'")]),
        ({"x": {}}, {}, [("x", "removed", "dict", None)]),
        ({"x": {}}, {"x": []}, [("x", "changed", "dict", "list of 0")]),
        ({"x": {1: 0}}, {"x": {"1": 0}}, [("x", "changed", "dict with int keys", "dict")]),
        ({"x": collections.OrderedDict(a=1)}, {"x": {"a": 1}}, []),
        ({"x": collections.Counter("a")}, {"x": {"a": 1}}, [("x", "changed", "Counter", "dict")]),
        ({"o": Record(class_name="m.C", state={"a": 1})},
         {"o": Record(class_name="m.C", state={"a": 2})}, [("o/a", "changed", "1", "2")]),
        ({"o": Record(class_name="m.C", args=(1,))}, {"o": Record(class_name="m.D", args=(1,))},
         [("o", "changed", "object of m.C", "object of m.D")]),
        ({"o": NamedReference("m.f")}, {"o": NamedReference("m.g")},
         [("o", "changed", "<reference to m.f>", "<reference to m.g>")]),
        ({"d": Record(class_name="torch.dtype", args=("float32",))},
         {"d": NamedReference("torch.float32")}, []),
    ],
)  # fmt: skip
def test_rows(a, b, expected, figure):
    assert sorted(rows(a, b)) == sorted(expected)
    figure("diff: kinds of value difference")


def test_long_strings_that_differ_late_say_that_they_differ():
    ((path, kind, a, b),) = rows({"x": "a" * 500}, {"x": "a" * 499 + "b" * 2})
    assert (path, kind) == ("x", "changed")
    assert a != b


def test_a_subtree_of_one_side_is_one_row():
    a = {"epoch": 1}
    b = {
        "epoch": 1,
        "vocabulary": [str(i) for i in range(1000)],
        "config": {"lr": 1, "b": {"c": 2}},
    }
    left, right = leaves(a, "a"), leaves(b, "b")
    found = {row.path: row for row in compare_values(left.values, right.values, [])}
    assert set(found) == {"vocabulary", "config"}
    assert found["vocabulary"].count == 1000
    assert found["config"].count == 2


def test_many_differing_members_of_a_list_are_one_row():
    left, right = leaves({"x": list(range(100))}, "a"), leaves({"x": list(range(1, 101))}, "b")
    (row,) = compare_values(left.values, right.values, [])
    assert (row.path, row.count) == ("x", 100)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.binary(
        max_size=4),
    lambda inner: st.lists(inner, max_size=4) | st.tuples(inner, inner) | st.dictionaries(
        st.text("abc", min_size=1, max_size=2), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


def copied(value):
    if isinstance(value, dict):
        return {key: copied(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(copied(inner) for inner in value)
    return value


@given(st.dictionaries(st.sampled_from("xyz"), plain, min_size=1), st.data())
@settings(max_examples=150, deadline=None)
def test_a_copy_is_equal_and_one_change_is_found(tree, data):
    assert rows(tree, copied(tree)) == []
    other = copied(tree)
    key = data.draw(st.sampled_from(sorted(other)))
    other[key] = ["something else"]
    if rows({"v": tree[key]}, {"v": other[key]}):
        found = rows(tree, other)
        assert found
        assert all(path == key or path.startswith(f"{key}/") for path, *_ in found)


@given(plain, plain)
@settings(max_examples=300, deadline=None)
def test_the_other_way_round_is_the_mirror(a, b):
    mirrored = {"added": "removed", "removed": "added", "changed": "changed"}
    forth = sorted((path, kind) for path, kind, *_ in rows({"v": a}, {"v": b}))
    back = sorted((path, mirrored[kind]) for path, kind, *_ in rows({"v": b}, {"v": a}))
    assert forth == back


def test_cycles_end_and_are_compared():
    def ring(target):
        inner = {"n": 1}
        outer = {"inner": inner, "n": 1}
        inner["back"] = outer if target == "outer" else inner
        return outer

    assert rows(ring("outer"), ring("outer")) == []
    ((path, kind, _, _),) = rows(ring("outer"), ring("inner"))
    assert (path, kind) == ("inner/back", "changed")


def test_cycles_and_depth_in_files(tmp_path):
    ring = [1]
    ring.append(ring)
    torch.save({"ring": ring}, tmp_path / "a")
    assert holdtrue.diff(tmp_path / "a", tmp_path / "a").equal
    deep = []
    for _ in range(250):
        deep = [deep]
    torch.save(deep, tmp_path / "deep")
    with pytest.raises(OpenError) as error:
        holdtrue.diff(tmp_path / "deep", tmp_path / "a")
    assert error.value.report.findings[0].code == "over-budget"


def test_shared_parts_that_multiply_are_refused():
    level = [0]
    for _ in range(40):
        level = [level, level]  # 2**40 places
    with override(entries=5000), pytest.raises(OpenError) as error:
        leaves({"x": level}, "a file")
    assert error.value.report.findings[0].code == "over-budget"


def test_keys_that_print_alike_are_both_kept():
    assert len(leaves({1: "a", "1": "b"}, "a").values) == 3
    found = rows({1: "a", "1": "b"}, {1: "a", "1": "c"})
    assert [kind for _, kind, *_ in found] == ["changed"]


def test_values_of_files(tmp_path):
    state = {"w": torch.zeros(2), "epoch": 3, "lr": [0.1, 0.2], "name": "a"}
    torch.save(state, tmp_path / "a")
    torch.save({**state, "epoch": 4, "lr": [0.1], "more": {"x": 1}}, tmp_path / "b")
    found = holdtrue.diff(tmp_path / "a", tmp_path / "b")
    told = {(row.path, row.kind) for row in found.values}
    assert told == {("epoch", "changed"), ("lr", "changed"), ("lr/1", "removed"), ("more", "added")}
    assert found.equal_tensors == 1
    assert not found.equal
