"""What is plain takes a short way through opening and planning; the long way finds the same."""

import json
import struct
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from torch import nn

import holdtrue
from holdtrue.errors import DamageError
from holdtrue.formats import checkpoint_directory, safetensors
from holdtrue.formats.checkpoint_directory import read_manifest, to_view
from holdtrue.formats.safetensors import parse_header
from holdtrue.limits import override
from holdtrue.records import consistency
from holdtrue.records.manifest import Manifest
from holdtrue.restore import architecture, module
from holdtrue.restore.request import Request, plan_request

GOLDEN = sorted((Path(__file__).parent.parent / "golden" / "v1").glob("*/manifest.json"))


def sealed(text):
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def told(raw, size):
    try:
        found = parse_header(raw, size, "f")
    except DamageError as error:
        return [(f.code, f.what, f.why) for f in error.report.findings]
    return found, list(found.entries)


def long_way(raw, size, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(safetensors, "_canonical", lambda raw: None)
        return told(raw, size)


PLAIN = (
    '{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},'
    '"b":{"dtype":"F16","shape":[],"data_offsets":[24,26]}}'
)
ODD = {
    "a comma too many": PLAIN.replace('"pt"},', '"pt"},,'),
    "a comma at the end": '{"__metadata__":{},}',
    "no comma": PLAIN.replace('"pt"},', '"pt"}'),
    "space after the metadata": PLAIN.replace('"pt"},', '"pt"} ,'),
    "text after the end": PLAIN + "}",
    "metadata alone": '{"__metadata__":{"a":"b"}}',
    "nothing": "{}",
    "metadata twice": PLAIN.replace('"b":', '"__metadata__":{"x":"y"},"b":'),
    "a name twice": PLAIN.replace('"b"', '"a"'),
    "a dtype twice": PLAIN.replace('"F16",', '"F16","dtype":"F16",'),
    "a name twice in the metadata": PLAIN.replace('{"format"', '{"format":"pt","format"'),
    "a number in the metadata": PLAIN.replace('"pt"', "1"),
    "a member too many": PLAIN.replace('"F16",', '"F16","x":1,'),
    "a member missing": PLAIN.replace('"shape":[],', ""),
    "a float": PLAIN.replace("[2,3]", "[2,3.0]"),
    "true": PLAIN.replace("[2,3]", "[true,6]"),
    "minus zero": PLAIN.replace("[0,24]", "[-0,24]"),
    "a negative size": PLAIN.replace("[2,3]", "[-2,-3]"),
    "a huge size": f'{{"a":{{"dtype":"U8","shape":[0,{1 << 63}],"data_offsets":[0,0]}}}}',
    "huge offsets": PLAIN.replace("[24,26]", f"[{1 << 64},{(1 << 64) + 2}]"),
    "three offsets": PLAIN.replace("[24,26]", "[24,26,28]"),
    "a gap": PLAIN.replace("[24,26]", "[26,28]"),
    "an overlap": PLAIN.replace("[24,26]", "[22,24]"),
    "another order": '{"b":{"dtype":"F16","shape":[],"data_offsets":[24,26]},'
    '"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}}',
    "members in another order": '{"a":{"shape":[2,3],"dtype":"F32","data_offsets":[0,24]}}',
    "spaces": json.dumps(json.loads(PLAIN)),
    "an unknown dtype": PLAIN.replace("F16", "F17"),
    "bits that fill no byte": '{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}',
    "bits that fill bytes": '{"a":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}',
    "65 dimensions": PLAIN.replace("[]", json.dumps([1] * 65, separators=(",", ":"))),
    "an escape": PLAIN.replace('"b"', '"\\u0062"'),
    "a surrogate": PLAIN.replace('"b"', '"\\ud800"'),
    "a control character": PLAIN.replace('"b"', '"\x01"'),
    "another alphabet": PLAIN.replace('"b"', '"gewicht-ä-重み"'),
    "bytes that are no UTF-8": PLAIN.encode().replace(b'"b"', b'"\xff"'),
    "a mark of byte order": b"\xef\xbb\xbf" + PLAIN.encode(),
    "nested deeply": '{"__metadata__":' + '{"a":' * 5000 + "1" + "}" * 5001,
    "padding": PLAIN + "   ",
    "a tab at the end": PLAIN + "\t",
    "NaN": PLAIN.replace("[2,3]", "[NaN]"),
}  # fmt: skip


@pytest.mark.parametrize("text", [PLAIN, *ODD.values()], ids=["plain", *ODD])
def test_a_header_is_read_alike_both_ways(text, monkeypatch, figure):
    raw = sealed(text)
    for size in (None, len(raw), len(raw) + 24, len(raw) + 26):
        assert told(raw, size) == long_way(raw, size, monkeypatch)
    figure("odd headers read both ways")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_header_with_changed_bytes_is_read_alike_both_ways(data):
    raw = bytearray(PLAIN.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        change = data.draw(st.sampled_from(["put", "drop", "double"]))
        if change == "put":
            raw[at] = data.draw(st.sampled_from(b'{}[]",:0123456789eE.-+ FUab\\\xff'))
        elif change == "drop":
            del raw[at]
        else:
            raw.insert(at, raw[at])
    whole = sealed(bytes(raw))
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert told(whole, None) == long_way(whole, None, monkeypatch)


def test_the_short_way_is_taken_for_what_writers_write(tmp_path):
    torch_safetensors = pytest.importorskip("safetensors.torch")
    torch_safetensors.save_file({"b": torch.ones(3), "a": torch.ones(2, 2)}, tmp_path / "f")
    holdtrue.save(tmp_path / "c", model=nn.Linear(2, 3))
    for path in (tmp_path / "f", tmp_path / "c" / "model.safetensors"):
        raw = path.read_bytes()
        head = raw[: 8 + struct.unpack("<Q", raw[:8])[0]]
        assert safetensors._canonical(head) is not None


def test_a_header_keeps_to_its_budget_of_values():
    names = ",".join(
        f'"{i}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{i + 1}]}}' for i in range(100)
    )
    with override(entries=300):
        (said,) = told(sealed("{" + names + "}"), None)
    assert said[0] == "safetensors-header-damaged"
    assert "300" in said[2]


RECORD = {"dtype": "float32", "shape": [2, 3],
          "chunks": [{"file": "m.safetensors", "name": "a", "digest": "0" * 32}]}  # fmt: skip
CHUNK = RECORD["chunks"][0]
RECORDS = {
    "plain": RECORD,
    "layout": {**RECORD, "layout": "round"},
    "dtype": {**RECORD, "dtype": "float31"},
    "quantised": {**RECORD, "dtype": "qint8"},
    "gradient of numbers": {**RECORD, "requires_grad": True},
    "gradient of integers": {**RECORD, "dtype": "int64", "requires_grad": True},
    "gradient of complex numbers": {**RECORD, "dtype": "complex64", "requires_grad": True},
    "65 dimensions": {**RECORD, "shape": [1] * 65},
    "negative": {**RECORD, "shape": [2, -3]},
    "huge": {**RECORD, "shape": [1 << 63]},
    "empty": {**RECORD, "shape": [0, 3]},
    "no dimensions": {**RECORD, "shape": []},
    "strides": {**RECORD, "stride": [1, 2]},
    "strides too far": {**RECORD, "stride": [100, 1]},
    "components": {**RECORD, "components": {"values": "m/0"}},
    "file": {**RECORD, "chunks": [{**CHUNK, "file": "n.safetensors"}]},
    "digest missing": {**RECORD, "chunks": [{**CHUNK, "digest": ""}]},
    "digest long": {**RECORD, "chunks": [{**CHUNK, "digest": "0" * 33}]},
    "digest capital": {**RECORD, "chunks": [{**CHUNK, "digest": "A" * 32}]},
    "digest newline": {**RECORD, "chunks": [{**CHUNK, "digest": "0" * 31 + "\n"}]},
    "no chunk": {**RECORD, "chunks": []},
    "twice": {**RECORD, "chunks": [CHUNK, CHUNK]},
    "a part": {**RECORD, "chunks": [{**CHUNK, "start": [0, 0], "shape": [1, 3]}]},
    "outside": {**RECORD, "chunks": [{**CHUNK, "start": [1, 0]}]},
    "whole, in words": {**RECORD, "chunks": [{**CHUNK, "start": [0, 0], "shape": [2, 3]}]},
    "overlap": {**RECORD, "overlap": [0, 0]},
}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_is_judged_alike_both_ways(kind, monkeypatch, figure):
    base = json.loads(GOLDEN[0].read_bytes())
    base["files"] = {"m.safetensors": {"nbytes": 0, "header": 8, "header_digest": "0" * 32}}
    base["parts"] = {}
    for order in ([kind, "plain"], ["plain", kind]):
        base["tensors"] = {f"m/{i}": RECORDS[name] for i, name in enumerate(order)}
        manifest = msgspec.convert(base, Manifest)
        short = consistency.find_problem(manifest)
        with monkeypatch.context() as patch:
            patch.setattr(consistency, "_not_plain", lambda m: dict(m.tensors))
            assert consistency.find_problem(manifest) == short
    figure("odd records judged both ways")


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.parent.name)
def test_a_checkpoint_is_described_alike_both_ways(path, monkeypatch):
    manifest = read_manifest(path.parent)
    short = to_view(path.parent, manifest)
    assert checkpoint_directory._whole_tensors(
        path.parent, manifest, checkpoint_directory._check_files(path.parent, manifest)[0]
    )
    monkeypatch.setattr(checkpoint_directory, "_whole_tensors", lambda *_: {})
    assert to_view(path.parent, manifest).tensors == short.tensors


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, 3)
        self.register_buffer("empty", torch.zeros(0, 4))
        self.scale = nn.Parameter(torch.tensor(2.0))


def frozen(net):
    net.fc.weight.requires_grad_(False)


def tied(net):
    net.fc.bias = net.norm.bias


def sharing(net):
    net.fc.weight.data = torch.zeros(20)[:9].reshape(3, 3)
    net.norm.bias.data = net.fc.weight.data[0]


def last(net):
    net.conv.to(memory_format=torch.channels_last)


def double(net):
    net.fc.double()


def wide(net):
    net.fc = nn.Linear(4, 3)


def expanded(net):
    net.norm.running_mean = torch.zeros(1).expand(3)


def renamed(net):
    net.last = net.fc
    del net.fc


def meta(net):
    net.fc.to("meta")


def odd(net):
    net.fc.weight = nn.Parameter(net.fc.weight.as_subclass(Odd))


def nothing(net):
    net.empty = None


def sparse(net):
    net.empty = torch.eye(3).to_sparse()


class Odd(torch.Tensor):
    pass


EDITS = [lambda net: None, frozen, tied, sharing, last, double, wide, expanded, renamed, meta, odd,
         nothing, sparse, nn.Module.eval]  # fmt: skip


def planned(checkpoint, model):
    request = Request(
        view=checkpoint.view, manifest=checkpoint.manifest, targets={"model": model}, given="x"
    )
    plan = plan_request(request).plan
    copies = [(c.lazy, id(c.into), c.cast) for c in plan.copies]
    actions = [a.where for a in plan.actions]
    return copies, actions, plan.findings, plan.renamed, plan.skipped, plan.moved


# What has no values cannot be saved.
@pytest.mark.parametrize("saved", [e for e in EDITS if e is not meta], ids=lambda e: e.__name__)
def test_a_restore_is_planned_alike_both_ways(saved, tmp_path, monkeypatch, figure):
    source = Net()
    saved(source)
    holdtrue.save(tmp_path / "c", model=source)
    checkpoint = holdtrue.open(tmp_path / "c")
    for edit in EDITS:
        target = Net()
        edit(target)
        short = planned(checkpoint, target)
        with monkeypatch.context() as patch:
            patch.setattr(module, "plan_plain", lambda *_: False)
            patch.setattr(architecture, "same_model", lambda *_: False)
            assert planned(checkpoint, target) == short
        figure("restores planned both ways")


def test_the_short_way_is_taken_for_what_is_plain(tmp_path, monkeypatch):
    net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    holdtrue.save(tmp_path / "c", model=net)
    monkeypatch.setattr(module, "_plan_entries", None)
    monkeypatch.setattr(architecture, "compare_architectures", None)
    assert holdtrue.open(tmp_path / "c").restore(model=net).ok


def test_the_device_that_a_model_was_on_is_compared(tmp_path):
    net = nn.Linear(2, 3)
    holdtrue.save(tmp_path / "c", model=net)
    checkpoint = holdtrue.open(tmp_path / "c")
    view = checkpoint.view
    moved = {key: replace(lazy, device="cuda:1") for key, lazy in view.tensors.items()}
    plan = plan_request(
        Request(
            view=replace(view, tensors=moved),
            manifest=checkpoint.manifest,
            targets={"model": net},
            given="x",
        )
    ).plan
    assert plan.moved == ["model: saved on cuda, here on cpu"]
