"""The record itself: what is in it, what is kept out of it, how large it is, and hostile ones."""

import subprocess
import sys
import types

import msgspec
import pytest
import torch
from edited_models import build
from msgspec.structs import replace
from test_mutations import findings_of
from torch import nn

import holdtrue
from holdtrue.capture.architecture import capture_architecture
from holdtrue.cli import main
from holdtrue.doctor.architecture import compare_architectures
from holdtrue.doctor.architecture_pair import Pair
from holdtrue.doctor.architecture_tensors import compare_tensors
from holdtrue.findings import render_report, report
from holdtrue.records.architecture import (
    Architecture,
    ClassRecord,
    FunctionRecord,
    Kind,
    find_record_problem,
)


def as_json(model):
    return msgspec.json.encode(capture_architecture(model).record)


def test_a_thousand_different_modules_stay_under_a_megabyte():
    with torch.device("meta"):
        model = nn.ModuleList([nn.Conv2d(n, n + 1, 3, padding=n % 5) for n in range(10, 1010)])
    assert len(as_json(model)) < 1 << 20


def test_modules_that_are_alike_are_described_once():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(1000)))
    assert len(as_json(model)) < 20_000


def test_nothing_of_the_machine_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("API_TOKEN", "hunter2-hunter2")
    monkeypatch.setenv("SHORT", "s3cret")
    model = build("Vision", tmp_path / "project")
    model.vocabulary = "/home/somebody/data/vocab.txt"
    model.folder = tmp_path / "inner"
    model.windows = r"C:\Users\somebody\vocab.txt"
    model.token, model.short = "Bearer hunter2-hunter2", "s3cret"
    model.where = torch.device("cpu")
    text = as_json(model).decode()
    for kept_out in ("somebody", str(tmp_path), "hunter2", "s3cret", '"cpu"'):
        assert kept_out not in text
    assert "vocab.txt" in text


def test_a_masked_value_that_changed_is_seen(monkeypatch):
    model = nn.Linear(2, 2)
    model.forward = None
    monkeypatch.setenv("FLAVOUR", "strawberry")
    model.flavour = "strawberry"
    saved = capture_architecture(model).record
    monkeypatch.delenv("FLAVOUR")
    assert not compare_architectures(saved, capture_architecture(model).record)
    model.flavour = "vanilla"
    assert compare_architectures(saved, capture_architecture(model).record)


def test_source_files_hold_what_the_model_uses(tmp_path):
    holdtrue.save(tmp_path / "c", model=build("Vision", tmp_path / "project"))
    names = sorted(p.name for p in (tmp_path / "c/source").iterdir())
    assert names == ["net.py", "shaping.py"]
    text = (tmp_path / "c/source/net.py").read_text()
    for used in ("class Vision", "class Residual", "def activation", "def scaled", "SCALE = 0.5",
                 "from shaping import gate, pool"):  # fmt: skip
        assert used in text
    for unused in ("class Text", "GAIN"):
        assert unused not in text
    compile(text, "net.py", "exec")


def test_two_parts_may_have_files_of_one_name(tmp_path):
    vision = build("Vision", tmp_path / "project")
    text = build("Text", tmp_path / "project")
    holdtrue.save(tmp_path / "c", model=vision, teacher=text)
    parts = holdtrue.open(tmp_path / "c").manifest.parts
    assert parts["model"].architecture.files[0] != parts["teacher"].architecture.files[0]
    assert holdtrue.verify(tmp_path / "c").ok


def test_a_changed_source_file_is_damage(tmp_path):
    holdtrue.save(tmp_path / "c", model=build("Vision", tmp_path / "project"))
    file = tmp_path / "c/source/shaping.py"
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    assert [f.code for f in holdtrue.verify(tmp_path / "c").findings] == ["digest-mismatch"]


def test_inspect_shows_the_architecture_and_the_code(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "project"
    build("Vision", folder, [("shaping.py", "POWER = 1.0", "POWER = 1.0  # \x1b[31mred")])
    model = build("Vision", folder)
    holdtrue.save(tmp_path / "c", model=model)
    for arguments, expected in (
        (["c"], "own Vision, Residual"),
        (["c", "--source"], "def gate(x)"),
    ):
        monkeypatch.setattr(
            sys, "argv", ["holdtrue", "inspect", str(tmp_path / arguments[0]), *arguments[1:]]
        )
        with pytest.raises(SystemExit):
            main()
        out = capsys.readouterr().out
        assert expected in out
        assert "\x1b" not in out
    assert r"\x1b[31mred" in out


def test_reading_a_record_needs_no_torch(tmp_path):
    holdtrue.save(tmp_path / "c", model=nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    program = f"""
import sys
sys.modules["torch"] = None
import holdtrue
from holdtrue.doctor.architecture import compare_architectures
record = holdtrue.open({str(tmp_path / "c")!r}).manifest.parts["model"].architecture
assert record.kinds[record.modules["1"]].attributes == {{"inplace": False}}
assert compare_architectures(record, record) == []
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_model_that_cannot_be_described_is_saved_all_the_same(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2))
    model.register_forward_hook(print)
    model.strange = types.SimpleNamespace(itself=None)
    model.strange.itself = model.strange
    model.deep = []
    for _ in range(500):
        model.deep = [model.deep]
    holdtrue.save(tmp_path / "c", model=model)
    assert holdtrue.open(tmp_path / "c").restore(model=model).ok


def test_hostile_records_end_in_findings():
    assert find_record_problem(Architecture(modules={"": 3}, kinds=()))
    deep = []
    for _ in range(900):
        deep = [deep]
    cycle = {"$": "object", "class": "A", "v": {"next": {"$": "shared", "v": 0}}}
    kind = Kind(
        class_name="a.B",
        attributes={
            "deep": deep,
            "itself": {"$": "shared", "v": 0},
            "far": {"$": "shared", "v": 9},
        },
    )
    bad = Architecture(modules={"": 0}, kinds=(kind,), objects=(cycle,))
    good = capture_architecture(nn.Linear(2, 2)).record
    text = render_report(
        report(
            "x",
            [
                *compare_architectures(bad, good),
                *compare_architectures(good, bad),
                *compare_architectures(bad, bad),
            ],
        )
    )
    assert "a.B" in text or "B(" in text


def test_only_and_rename_reach_the_comparison(tmp_path):
    saved = nn.ModuleDict(
        {"old": nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "head": nn.Linear(2, 2)}
    )
    here = nn.ModuleDict(
        {"new": nn.Sequential(nn.Linear(2, 2), nn.Tanh()), "head": nn.Linear(2, 2)}
    )
    holdtrue.save(tmp_path / "c", model=saved)
    ck = holdtrue.open(tmp_path / "c")
    with pytest.raises(holdtrue.RestoreError) as caught:
        ck.restore(model=here, rename={"old.*": "new.*"})
    assert [f.where for f in caught.value.report.errors] == ["model/new.1"]
    assert ck.restore(model=here, only="head.*").ok


def test_a_run_resumes_past_a_change_that_is_allowed(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with holdtrue.Run(tmp_path / "run", model=model) as run:
        run.save(1, wait=True)
    model[1] = nn.Tanh()
    run = holdtrue.Run(tmp_path / "run", model=model)
    with pytest.raises(holdtrue.RestoreError):
        run.resume()
    assert run.resume(allow=["architecture-changed"]) == 1


def test_two_records_alone_show_dtypes_frozen_parameters_and_ties():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)
            self.two.weight = self.one.weight

    saved = Tied()
    here = Tied().half()
    here.two.weight = nn.Parameter(here.one.weight.detach().clone())
    here.one.weight.requires_grad_(False)
    records = [capture_architecture(m).record for m in (saved, here)]
    pair = Pair("model", *records, {p: p for p in records[0].modules})
    codes = {f.code for f in compare_tensors(pair)}
    assert codes == {"dtype-changed", "requires-grad-changed", "tie-lost"}


def test_a_library_version_with_a_known_effect_is_a_warning():
    record = capture_architecture(nn.Upsample(scale_factor=2)).record
    older = replace(record, distributions={"torch": "1.5.1"})
    (finding,) = compare_architectures(older, record)
    assert (finding.code, finding.severity) == ("library-changed", "warning")
    other = replace(record, distributions={"torch": "2.12.0"})
    (finding,) = compare_architectures(other, record)
    assert finding.severity == "note"
    build_only = replace(record, distributions={"torch": record.distributions["torch"] + "+cu999"})
    assert compare_architectures(build_only, record) == []


def test_code_without_source_is_compared_by_bytecode(tmp_path):
    def made(body):
        space = {"nn": nn, "torch": torch, "__name__": "made"}
        exec(f"class Net(nn.Module):\n    def forward(self, x):\n        return {body}", space)
        return space["Net"]()

    holdtrue.save(tmp_path / "c", model=made("x + 1"))
    assert not [f for f in findings_of(tmp_path / "c", made("x + 1")) if f.severity != "note"]
    assert "code-changed" in {f.code for f in findings_of(tmp_path / "c", made("x + 2"))}


def test_bytecode_of_another_python_is_said_not_to_be_comparable():
    def record(tree):
        return Architecture(
            modules={"": 0},
            kinds=(Kind(class_name="a.B"),),
            classes={"a.B": ClassRecord(forward=("a.B.forward",))},
            functions={"a.B.forward": FunctionRecord(tree=tree)},
        )

    (finding,) = compare_architectures(record("cpython-3.11:aa"), record("cpython-3.12:bb"))
    assert (finding.code, finding.severity) == ("code-unknown", "note")


@pytest.mark.parametrize(
    "text",
    ["-" * 90_000 + "1", "(" * 5000, "lambda:" * 10_000 + "1", "x" + ".a" * 40_000, "\0", "",
     "not " * 20_000 + "x", "f(" * 3000 + ")" * 3000, "1" + "+1" * 40_000, "x" + "[0]" * 30_000,
     "def f():\n  " + "x=" * 30_000 + "1", "1if 1else " * 9000 + "1", "9" * 90_000, "f'{" * 50,
     "def f(x):\n    return x\n\ndef g():\n    pass", "\ud800"],
    ids=range(16),
)  # fmt: skip
def test_code_in_a_record_may_be_anything(text):
    function = FunctionRecord(text=text, tree="0" * 32)
    changed = FunctionRecord(text="def f(x):\n    return x", tree="1" * 32)
    records = [
        Architecture(
            modules={"": 0},
            kinds=(Kind(class_name="a.B"),),
            classes={"a.B": ClassRecord(forward=("a.B.forward",))},
            functions={"a.B.forward": f},
        )
        for f in (function, changed)
    ]
    (finding,) = compare_architectures(*records)
    assert finding.code == "code-changed"
    assert finding.why.count("\n") <= 20


def test_a_diff_of_two_checkpoints_tells_the_architecture(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    holdtrue.save(tmp_path / "a", model=model)
    holdtrue.save(tmp_path / "same", model=model)
    model[1] = nn.Tanh()
    holdtrue.save(tmp_path / "b", model=model)
    told = [n for n in holdtrue.diff(tmp_path / "a", tmp_path / "b").notes if "model/1" in n]
    assert len(told) == 1
    assert "ReLU(inplace=False) → Tanh()" in told[0]
    same = holdtrue.diff(tmp_path / "a", tmp_path / "same")
    assert not [n for n in same.notes if "changed" in n]
