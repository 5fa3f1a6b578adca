"""The command line as a person meets it: what it prints, and its exit status."""

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import holdtrue
from holdtrue.cli import main

HOLDTRUE = str(Path(sys.executable).with_name("holdtrue"))


@pytest.fixture
def run_dir(tmp_path):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters())
    keep = holdtrue.Keep(last=3, by="loss", best=1)
    run = holdtrue.Run(tmp_path / "run", model=model, optimizer=optimizer, classes=["a"], keep=keep)
    for step, loss in ((1, 0.5), (2, 0.25), (3, float("nan")), (4, 0.75)):
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        run.save(step, metrics={"loss": loss}, wait=True)
    return tmp_path / "run"


@pytest.fixture
def call(monkeypatch, capsys):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["holdtrue", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        return exit_.value.code or 0, out, err

    return call


def test_log_marks_the_best_and_shows_nan(call, run_dir):
    status, out, err = call("log", run_dir)
    assert status == 0
    assert not err
    rows = out.splitlines()
    assert [r.split()[0] for r in rows] == ["step", "2", "3", "4"]
    assert "★ best loss" in rows[1]
    assert sum("★" in r for r in rows) == 1
    assert "nan" in rows[2]


def test_log_json_is_json_even_with_nan(call, run_dir):
    status, out, _ = call("log", run_dir, "--json")
    rows = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert status == 0
    assert [r["step"] for r in rows] == [2, 3, 4]
    assert [r["best"] for r in rows] == [True, False, False]
    assert rows[1]["metrics"] == {"loss": "nan"}


def test_log_shows_a_damaged_checkpoint_and_goes_on(call, run_dir):
    manifest = run_dir / "step-000000003" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:-40])
    status, out, _ = call("log", run_dir)
    assert status == 1
    assert "damaged" in out.splitlines()[2]
    assert call("log", run_dir, "--json")[0] == 1


def test_inspect_names_every_part_and_tensor(call, run_dir):
    status, out, _ = call("inspect", f"{run_dir}@best")
    assert status == 0
    for expected in ("step 2", "0.weight", "float32 [8, 4]", "optimizer", "['a']", "rng", "loss"):
        assert expected in out
    assert torch.__version__ in out


def test_inspect_gathers_many_tensors_by_subtree(call, tmp_path):
    layers = nn.ModuleList(nn.ModuleDict({"a": nn.Linear(2, 2)}) for _ in range(30))
    holdtrue.save(tmp_path / "c", model=layers)
    _, short, _ = call("inspect", tmp_path / "c")
    _, long, _ = call("inspect", tmp_path / "c", "--all")
    assert "29.a " in short
    assert "29.a.weight" not in short
    assert "29.a.weight" in long


def test_inspect_json(call, run_dir):
    status, out, _ = call("inspect", run_dir, "--json")
    value = json.loads(out)
    assert status == 0
    assert value["step"] == 4
    assert value["tensors"]["model/0.weight"]["shape"] == [8, 4]
    assert set(value["parts"]) == {"model", "optimizer", "classes", "rng"}


def test_verify_a_run_reads_every_checkpoint(call, run_dir):
    status, out, _ = call("verify", run_dir)
    assert status == 0
    assert len(out.splitlines()) == 3
    assert all("every byte is as it was written" in line for line in out.splitlines())


def test_verify_finds_a_flipped_byte(call, run_dir):
    path = run_dir / "step-000000003" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    status, out, _ = call("verify", run_dir)
    assert status == 1
    assert "error[digest-mismatch]" in out
    assert "model.safetensors/2.bias" in out
    status, out, _ = call("verify", run_dir / "step-000000003", "--json")
    value = json.loads(out)
    assert status == 1
    assert value["ok"] is False
    assert [f["code"] for f in value["findings"]] == ["digest-mismatch"]


@pytest.mark.parametrize("command", ["inspect", "log", "verify"])
@pytest.mark.parametrize("what", ["nowhere", "file", "empty", "half-written"])
def test_what_is_no_checkpoint_gives_one_finding_and_status_2(call, tmp_path, command, what):
    path = tmp_path / what
    if what == "file":
        path.write_text("hello")
    elif what == "empty":
        path.mkdir()
    elif what == "half-written":
        (path / ".staging" / "step-000000001.host-1.aa").mkdir(parents=True)
    status, out, _ = call(command, path)
    assert status == 2
    assert out.count("error[") == 1
    assert "why" in out
    assert "fix" in out
    assert "Traceback" not in out
    status, out, _ = call(command, path, "--json")
    assert status == 2
    value = json.loads(out)
    assert len((value if isinstance(value, dict) else value[0])["findings"]) == 1


def test_the_installed_command_and_its_colours(run_dir):
    plain = subprocess.run([HOLDTRUE, "log", run_dir], capture_output=True, text=True, check=True)
    assert "\x1b" not in plain.stdout
    helped = subprocess.run([HOLDTRUE, "--help"], capture_output=True, text=True, check=True)
    for name in ("demo", "inspect", "log", "verify"):
        assert name in helped.stdout
    assert subprocess.run([HOLDTRUE, "nonsense"], capture_output=True).returncode == 2


def test_a_reader_that_has_seen_enough_is_no_failure(run_dir):
    for command in ("log", "inspect", "verify"):
        piped = subprocess.Popen(
            [HOLDTRUE, command, run_dir], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        piped.stdout.close()
        assert (piped.stderr.read(), piped.wait()) == (b"", 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("command", ["log", "inspect", "verify"])
def test_output_that_cannot_be_written_is_said_in_one_line(run_dir, command):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [HOLDTRUE, command, run_dir], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "holdtrue: the output could not be written: No space left on device"
    ]


INSPECT = """
import re, sys
sys.argv = ["holdtrue", "inspect", sys.argv[1]]
from holdtrue.cli import main
try:
    main()
except SystemExit:
    pass
assert "torch" not in sys.modules
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())
assert int(peak[1]) < 100 * 1024, peak[0]
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads its peak memory from /proc")
@pytest.mark.parametrize("kind", ["run", "zip", "legacy", "safetensors"])
def test_inspect_imports_no_torch_and_reads_no_tensor(run_dir, tmp_path, kind):
    """A file of 400 MB, most of it a hole: whoever read it whole would need the memory."""
    path = tmp_path / kind
    state = {"w": torch.zeros(100, 1_000_000), "n": torch.ones(2)}
    if kind == "run":
        path = run_dir
    elif kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    done = subprocess.run([sys.executable, "-c", INSPECT, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "float32" in done.stdout


def test_demo(tmp_path):
    pytest.importorskip("sklearn")
    demo = [HOLDTRUE, "demo", "--dir", str(tmp_path / "demo")]
    told = subprocess.run(demo, capture_output=True, text=True)
    assert told.returncode == 0, told.stdout + told.stderr
    assert "264 losses, every one equal" in told.stdout
    assert "SIGKILL" in told.stdout
    again = subprocess.run(demo, capture_output=True, text=True)
    assert again.returncode == 2
    assert "already-exists" in again.stdout


def test_the_demo_tells_when_something_differs(tmp_path, call, monkeypatch):
    """The comparison can fail: two trainings that differ in one loss and one weight."""
    from holdtrue.demo.story import Training, compare

    made = []
    for name, value in (("a", 1.0), ("b", 2.0)):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        run = holdtrue.Run(tmp_path / name, model=nn.Linear(1, 1), classes=[name])
        run.parts["model"].weight.data.fill_(value)
        run.parts["model"].bias.data.fill_(0)
        run.save(1, metrics={"accuracy": 1.0}, wait=True)
        losses = tmp_path / f"{name}.losses"
        losses.write_text(json.dumps({"step": 1, "loss": value.hex()}) + "\n")
        made.append(Training(tmp_path / name, losses, 0.0, 0.0, 0.0))
    result = compare(*made)
    assert not result.equal
    assert result.differing_losses == (1,)
    assert result.differing_tensors == ("model/weight",)
    assert result.differing_parts == ("classes",)
    assert compare(made[0], made[0]).equal
