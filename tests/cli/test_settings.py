"""Environment variables that are no numbers: one line names the variable and what it may be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import fields

from holdtrue import limits
from holdtrue.limits import Limits, SettingError

NAMES = ["HOLDTRUE_" + field.name.upper() for field in fields(Limits)]
NONSENSE = ("abc", "-1", "1e99", str(2**80), "9" * 5000, "8 MiB", "0x10", "1_000", "²", "٣")


@pytest.mark.parametrize("name", NAMES)
def test_nonsense_is_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in NONSENSE:
        monkeypatch.setenv(name, text)
        with pytest.raises(SettingError) as caught:
            limits._from_environment()
        said = str(caught.value)
        assert said.startswith(f"{name}={text[:40]}: give a whole number from ")
        assert len(said) < 200
    monkeypatch.setenv(name, "0")
    if name in ("HOLDTRUE_DIFF_BYTES", "HOLDTRUE_HOSTNAME", "HOLDTRUE_DIRECT_BYTES"):
        assert getattr(limits._from_environment(), name[9:].lower()) == 0
    else:
        with pytest.raises(SettingError, match="from 1 to"):
            limits._from_environment()


def test_numbers_are_taken_and_nothing_is_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, " 7 ")
    assert all(getattr(limits._from_environment(), f.name) == 7 for f in fields(Limits))
    for name in NAMES:
        monkeypatch.setenv(name, "")
    assert limits._from_environment() == Limits()
    monkeypatch.setenv("HOLDTRUE_THREADS", "1025")
    with pytest.raises(SettingError, match="from 1 to 1,024, or unset it for 4"):
        limits._from_environment()


COMMAND = "from holdtrue.cli import main; main()"


def run(*arguments: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True, text=True, check=False, env={**os.environ, **settings},
    )  # fmt: skip


def test_the_command_line_says_so_without_a_traceback(tmp_path: Path) -> None:
    for command in ("verify", "doctor", "inspect"):
        done = run("-c", COMMAND, command, str(tmp_path), HOLDTRUE_CHUNK_BYTES="8MiB")
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith("holdtrue: HOLDTRUE_CHUNK_BYTES=8MiB: give a whole number")
        assert done.stderr.count("\n") == 1
    assert run("-c", COMMAND, "--help", HOLDTRUE_CHUNK_BYTES="8MiB").returncode == 0


@pytest.mark.parametrize("call", ["open('x')", "Run('x')", "save('x', v=1)", "verify('x')"])
def test_the_library_says_so_before_anything_is_touched(call: str, tmp_path: Path) -> None:
    program = f"import os, holdtrue; os.chdir({str(tmp_path)!r}); holdtrue.{call}"
    done = run("-c", program, HOLDTRUE_THREADS="-1")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("holdtrue.limits.SettingError: HOLDTRUE_THREADS=-1: give a whole number")
    assert not list(tmp_path.iterdir())
