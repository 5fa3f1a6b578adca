"""States four times as large as the memory left for them, under a limit that is enforced."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

MIB = 1 << 20
PROGRAM = Path(__file__).with_name("larger_than_memory.py")
SAID = {
    "saving": "3",  # files
    "saving what is not in order": "3",
    "saving into a run": "[1, 2]",
    "verifying": "True",
    "converting to safetensors": "right",
    "converting to torch": "right",
    "verifying a torch file": "True",
    "comparing with itself in another format": "8 equal, 0 changed",
    "comparing with another": "0 equal, 8 changed",
    "restoring one layer": "right",
    "restoring one layer, verified on the way": "right",
    "restoring one layer of a model on meta": "right",
}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux alone enforces such limits")


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a control group whose processes together may have so many bytes, page cache and all."""
    made: list[Path] = []

    def make(nbytes: int) -> Path:
        older, newer = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
        root, limit = (older, "memory.limit_in_bytes") if older.is_dir() else (newer, "memory.max")
        place = root / f"holdtrue-test-{os.getpid()}"
        try:
            place.mkdir()
            made.append(place)
            (place / limit).write_text(str(nbytes))
        except OSError as error:
            pytest.skip(f"control groups of memory cannot be made here: {error}")
        return place

    yield make
    for place in made:
        place.rmdir()


def tried(
    how: str, limit: int, size: int, folder: Path, figure: Callable[..., None], **more: str
) -> None:
    """Runs every operation, and counts the peaks."""
    stat = os.statvfs(folder)
    if stat.f_bavail * stat.f_frsize < 9 * size * MIB:
        pytest.skip(f"needs {9 * size} MiB of disk")
    command = [sys.executable, str(PROGRAM), how, str(limit), str(size), str(folder)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=500, env={**os.environ, **more}
    )
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert {one["what"]: one["said"] for one in told} == SAID
    for one in told:
        assert 0 <= one["peak"] < limit * MIB
        figure(f"MiB at most, {one['what']} {size} under {limit} ({how})", one["peak"] // MIB)


def test_a_small_state_in_a_smaller_memory(tmp_path: Path, figure: Callable[..., None]) -> None:
    smaller = {"HOLDTRUE_CHUNK_BYTES": str(MIB), "HOLDTRUE_BUFFER_BYTES": str(8 * MIB)}
    tried("rlimit", 48, 192, tmp_path, figure, **smaller)


@pytest.mark.slow
def test_private_memory_is_limited(tmp_path: Path, figure: Callable[..., None]) -> None:
    tried("rlimit", 256, 1024, tmp_path, figure)


@pytest.mark.slow
def test_all_memory_is_limited_the_page_cache_too(
    tmp_path: Path, group: Callable[[int], Path], figure: Callable[..., None]
) -> None:
    place = str(group(256 * MIB))
    tried("cgroup", 256, 1024, tmp_path, figure, HOLDTRUE_TEST_CGROUP=place)
