"""`holdtrue diff` as a person meets it, and input that cannot be compared."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import holdtrue
from holdtrue.cli import main
from holdtrue.errors import HoldtrueError
from holdtrue.limits import override


def check_findings(error):
    assert error.report.findings
    for finding in error.report.findings:
        assert finding.code
        assert finding.what
        assert "weights_only=False" not in f"{finding.why}{finding.fix}"


@pytest.fixture
def call(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["holdtrue", "diff", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        return exit_.value.code or 0, out, err

    return call


@pytest.fixture
def pair(tmp_path):
    """Two checkpoints with a difference of every kind."""
    torch.manual_seed(0)
    state = {
        name: t.clone() for name, t in nn.Sequential(*[nn.Linear(3, 3)] * 2).state_dict().items()
    }
    torch.save({"model": state, "epoch": 1}, tmp_path / "a.pt")
    state["0.weight"][0, 0] += 1
    state["0.bias"][1] = float("nan")
    state["1.bias"] = torch.zeros(4)
    state["new"] = torch.ones(7)
    del state["1.weight"]
    torch.save({"model": state, "epoch": 2}, tmp_path / "b.pt")
    return tmp_path / "a.pt", tmp_path / "b.pt"


def test_equal_files_end_with_status_0(call, pair):
    status, out, err = call(pair[0], pair[0])
    assert status == 0
    assert not err
    assert out.splitlines()[-1].startswith("equal · tensors: 4 equal")


def test_differences_end_with_status_1(call, pair):
    status, out, err = call(*pair)
    assert status == 1
    assert not err
    lines = out.splitlines()
    rows = [line.split()[0] for line in lines if line.startswith("model/")]
    assert rows == ["model/1.bias", "model/0.bias", "model/0.weight"]  # worst first
    assert "float32 [3] → float32 [4]" in out
    assert "1 of 9" in out
    assert "0 → 1" in out
    assert "removed  model/1.weight  float32 [3, 3]" in lines
    assert "added    model/new  float32 [7]" in lines
    assert "changed  epoch  1 → 2" in lines
    assert "\x1b" not in out


def test_text_and_command_name_the_same_rows(pair):
    text = str(holdtrue.diff(*pair))
    for part in (
        "model/1.bias",
        "model/0.bias",
        "NaN 0 → 1",
        "removed  model/1.weight",
        "added    model/new",
        "changed  epoch  1 → 2",
        "3 changed, 1 removed, 1 added",
    ):
        assert part in text


def test_json(call, pair):
    status, out, _ = call(*pair, "--json")
    value = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert status == 1
    assert value["equal"] is False
    assert value["formats"] == ["torch-zip", "torch-zip"]
    changed = {row["name"]: row for row in value["changed"]}
    assert changed["model/0.weight"]["numbers"]["max_abs"] == pytest.approx(1, rel=1e-6)
    assert changed["model/0.bias"]["numbers"]["nan_b"] == 1
    assert value["values"] == [{"path": "epoch", "kind": "changed", "a": "1", "b": "2"}]


def test_json_has_no_infinity(call, tmp_path):
    torch.save({"x": torch.tensor([float("inf")])}, tmp_path / "a")
    torch.save({"x": torch.tensor([1.0])}, tmp_path / "b")
    _, out, _ = call(tmp_path / "a", tmp_path / "b", "--json")
    value = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert value["changed"][0]["numbers"]["max_abs"] == "inf"


def test_many_tensors_are_gathered_by_module(call, tmp_path):
    layers = {f"layers.{i}.{n}": torch.zeros(2) for i in range(12) for n in ("q", "k", "v")}
    torch.save(layers, tmp_path / "a")
    layers = {name: t + (len(name) if ".7." in name else 1) for name, t in layers.items()}
    torch.save({**layers, **{f"more{i}": torch.zeros(1) for i in range(40)}}, tmp_path / "b")
    _, short, _ = call(tmp_path / "a", tmp_path / "b")
    rows = [line for line in short.splitlines() if line.startswith("layers")]
    assert len(rows) == 12
    assert rows[0].startswith("layers.7 ")  # the worst of them first
    assert "3 tensors, values" in rows[0]
    assert "… and 16 more" in short
    _, long, _ = call(tmp_path / "a", tmp_path / "b", "--all")
    assert sum(line.startswith("layers") for line in long.splitlines()) == 36
    assert "more39" in long


def test_a_prefix_is_said(call, tmp_path):
    state = nn.Linear(2, 2).state_dict()
    torch.save(state, tmp_path / "a")
    torch.save({f"module.{name}": t for name, t in state.items()}, tmp_path / "b")
    status, out, _ = call(tmp_path / "a", tmp_path / "b")
    assert status == 1
    assert "names compared by the prefix (nothing) → module." in out


def test_a_terminal_sees_progress_on_stderr(pair):
    pty = pytest.importorskip("pty")
    screen, terminal = pty.openpty()
    program = "from holdtrue.cli import main; import sys; sys.argv[0] = 'holdtrue'; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "diff", *map(str, pair)],
        stdout=subprocess.PIPE,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm"},
        check=False,
    )
    os.close(terminal)
    seen = os.read(screen, 1 << 16)
    os.close(screen)
    assert done.returncode == 1
    assert b"comparing" in seen
    assert b"comparing" not in done.stdout


def test_progress_grows_to_its_total(tmp_path):
    a = {"x": torch.zeros(5000), "y": torch.zeros(300), "old": torch.ones(70)}
    torch.save(a, tmp_path / "a")
    torch.save(
        {"x": torch.ones(5000), "y": torch.zeros(300), "new": torch.ones(70)}, tmp_path / "b"
    )
    told = []
    with override(chunk_bytes=1024):
        holdtrue.diff(tmp_path / "a", tmp_path / "b", progress=lambda *now: told.append(now))
    assert told[0] == (0, 2 * 4 * 5370)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1] == (2 * 4 * 5370, 2 * 4 * 5370)
    assert len(told) > 40


@pytest.mark.parametrize("bad", ["missing", "empty", "text", "cut", "directory", "run@9"])
@pytest.mark.parametrize("first", [True, False])
def test_what_cannot_be_compared_ends_with_status_2(call, pair, tmp_path, bad, first):
    path = tmp_path / bad
    if bad == "empty":
        path.write_bytes(b"")
    elif bad == "text":
        path.write_text("hello")
    elif bad == "cut":
        path.write_bytes(pair[0].read_bytes()[:-100])
    elif bad == "directory":
        path.mkdir()
    paths = (path, pair[0]) if first else (pair[0], path)
    with pytest.raises(HoldtrueError) as error:
        holdtrue.diff(*paths)
    check_findings(error.value)
    status, out, _ = call(*paths)
    assert status == 2
    assert "error[" in out
    assert "Traceback" not in out
    status, out, _ = call(*paths, "--json")
    assert status == 2
    assert json.loads(out)["findings"]


@pytest.mark.parametrize("suffix", ["zip", "legacy", "safetensors", "npz", "holdtrue"])
def test_damaged_files_never_raise_anything_else(tmp_path, suffix, figure):
    from safetensors.torch import save_file

    state = {"w": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(2, dtype=torch.int64)}
    path = tmp_path / "file"
    if suffix == "zip":
        torch.save({**state, "epoch": 1}, path)
    elif suffix == "legacy":
        torch.save({**state, "epoch": 1}, path, _use_new_zipfile_serialization=False)
    elif suffix == "safetensors":
        save_file(state, path)
    elif suffix == "npz":
        np.savez_compressed(tmp_path / "file.npz", **{n: t.numpy() for n, t in state.items()})
        path = tmp_path / "file.npz"
    else:
        holdtrue.save(path, w=state["w"], b=state["b"], epoch=1)
    torch.save(state, tmp_path / "whole")
    target = path / "manifest.json" if path.is_dir() else path
    data = target.read_bytes()
    chance = np.random.default_rng(0)
    for number in range(300):
        damaged = bytearray(data)
        if number % 3 == 0:
            damaged = damaged[: chance.integers(len(data))]
        else:
            for _ in range(number % 4 + 1):
                damaged[chance.integers(len(data))] ^= int(chance.integers(1, 256))
        target.write_bytes(damaged)
        try:
            str(holdtrue.diff(path, tmp_path / "whole"))
        except HoldtrueError as error:
            check_findings(error)
        figure("diff: damaged files")


def test_it_works_without_torch(pair):
    program = f"""
import sys
sys.modules["torch"] = None
import holdtrue
found = holdtrue.diff({str(pair[0])!r}, {str(pair[1])!r})
assert not found.equal and len(found.changed) == 3
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_nothing_of_a_file_is_run(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"x": Trap(), "w": torch.zeros(1)}, tmp_path / "a")
    torch.save({"x": 1, "w": torch.zeros(1)}, tmp_path / "b")
    found = holdtrue.diff(tmp_path / "a", tmp_path / "b")
    assert [row.path for row in found.values][0] == "x"
    assert not (tmp_path / "ran").exists()
