"""holdtrue convert and salvage as they are typed."""

import json
import os
import pty
import subprocess
import sys

import pytest
import torch
from making import numbers
from safetensors.torch import load_file

COMMAND = [sys.executable, "-c", "from holdtrue.cli import main; main()"]


def run(*args, **more):
    return subprocess.run(
        [*COMMAND, *map(str, args)], capture_output=True, text=True, check=False, **more
    )


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "a.pt"
    torch.save({"model": {f"w{i}": numbers("float32", 40, 40, seed=i) for i in range(3)},
                "epoch": 3}, path)  # fmt: skip
    return path


def test_convert(source, tmp_path):
    done = run("convert", source, tmp_path / "b.safetensors")
    assert done.returncode == 0, done.stderr
    assert "a safetensors file · 3 tensors, " in done.stdout
    assert "values-not-carried" in done.stdout
    assert "epoch (int)" in done.stdout
    assert done.stderr == ""
    assert set(load_file(tmp_path / "b.safetensors")) == {"w0", "w1", "w2"}
    again = run("convert", source, tmp_path / "b.safetensors")
    assert again.returncode == 1
    assert "already-exists" in again.stdout
    assert run("convert", source, tmp_path / "b.safetensors", "--overwrite").returncode == 0


def test_json_and_options(source, tmp_path):
    done = run("convert", source, tmp_path / "s", "--to", "shards", "--part", "model", "--json",
               "--shard-size", 1)  # fmt: skip
    told = json.loads(done.stdout)
    assert told["kind"] == "shards"
    assert told["tensors"] == 3
    assert told["ok"] is True
    assert told["findings"][0]["code"] == "values-not-carried"
    assert run("convert", source, tmp_path / "x", "--to", "pickle").returncode == 2
    absent = run("convert", tmp_path / "absent.pt", tmp_path / "x", "--json")
    assert absent.returncode == 2
    assert json.loads(absent.stdout)["findings"][0]["code"] == "path-missing"


def test_salvage(source, tmp_path):
    assert run("salvage", source, tmp_path / "all.pt").returncode == 0
    data = bytearray(source.read_bytes())
    data[data.index(numbers("float32", 40, 40, seed=1).numpy().tobytes())] ^= 1
    source.write_bytes(data)
    broken = run("convert", source, tmp_path / "b.pt")
    assert broken.returncode == 1
    assert "crc-mismatch" in broken.stdout
    done = run("salvage", source, tmp_path / "b.pt", "--json")
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["ok"] is False
    assert told["tensors"] == 2
    assert [f["code"] for f in told["findings"] if f["severity"] == "error"] == ["tensors-lost"]
    assert set(torch.load(tmp_path / "b.pt", weights_only=True)) == {"w0", "w2"}


def test_neither_needs_torch(source, tmp_path):
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "sys.argv = ['holdtrue', 'convert', sys.argv[1], sys.argv[2]]\n"
        "from holdtrue.cli import main; main()"
    )
    for dst in ("b.pt", "b.safetensors", "b"):
        command = [sys.executable, "-c", program, str(source), str(tmp_path / dst)]
        assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_bar_on_a_terminal(source, tmp_path):
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [*COMMAND, "convert", str(source), str(tmp_path / "b.pt")],
        stdout=subprocess.PIPE, stderr=theirs, check=True, env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert "converting" in shown
    assert b"converting" not in done.stdout
