"""A conversion holds little memory of its own, however large the file."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

GIB = 1 << 30

PROGRAM = """
import json, sys, threading, time
import holdtrue
from holdtrue.doctor.convert import convert  # imported before the measurement starts
peak = 0
def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))
def watch():
    global peak
    while True:
        peak = max(peak, anonymous())
        time.sleep(0.005)
threading.Thread(target=watch, daemon=True).start()
made = convert(sys.argv[1], sys.argv[2], to=sys.argv[3])
assert made.report.ok and "torch" not in sys.modules
print(json.dumps({"peak": peak, "tensors": made.tensors, "nbytes": made.nbytes}))
"""


def write_large(path: Path, nbytes: int) -> int:
    """A safetensors file with a hole in it; two tensors of 512 MiB, the rest of 64 MiB."""
    sizes = [GIB // 2, GIB // 2]
    sizes += [GIB // 16] * ((nbytes - sum(sizes)) // (GIB // 16))
    header, at = {}, 0
    for i, size in enumerate(sizes):
        shape = [size // 4096, 1024]
        header[f"w{i}"] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return len(sizes)


def peak_of(source: Path, place: Path, to: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(source), str(place), to],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return int(json.loads(done.stdout)["peak"])


def room(place: Path, nbytes: int) -> bool:
    stat = os.statvfs(place)
    return stat.f_bavail * stat.f_frsize > nbytes + GIB


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("to", ["torch", "safetensors", "shards", "holdtrue"])
def test_anonymous_memory_stays_far_below_the_file(to, tmp_path, figure):
    nbytes = 2 * GIB
    if not room(tmp_path, nbytes):
        pytest.skip("not enough room on the disk")
    write_large(tmp_path / "large.safetensors", nbytes)
    peak = peak_of(tmp_path / "large.safetensors", tmp_path / "out", to)
    assert peak < 500 << 20
    figure(f"MiB of anonymous memory to {to}", peak >> 20)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_one_large_tensor_is_never_whole_in_memory(tmp_path):
    size = 256 << 20
    header = {"w": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    with (tmp_path / "a.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)
    assert peak_of(tmp_path / "a.safetensors", tmp_path / "out.pt", "torch") < size // 2
