"""One writer a run: who holds it is said, what is dead is taken over, readers never wait."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import holdtrue
from holdtrue.storage import locking


def program(path: Path, body: str) -> list[str]:
    head = "import sys, time, holdtrue\n"
    head += f"run = holdtrue.Run({str(path)!r}, on_error='raise', value=1)\n"
    return [sys.executable, "-c", head + textwrap.dedent(body)]


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that saves into the run, and then lives on."""
    command = program(tmp_path / "run", "run.save(1, wait=True); print('saved'); time.sleep(120)")
    process = subprocess.Popen(
        [*command[:1], "-u", *command[1:]], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "saved\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.fixture(params=["flock", "no flock"])
def flocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """With the kernel's locks, and as on a file system that has none (the refusal is injected)."""
    if request.param == "no flock":
        refuse_flock(monkeypatch)
    return bool(request.param == "flock")


def refuse_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(locking.fcntl, "flock", refused)


def test_the_second_writer_is_told_who_the_first_is(
    other: subprocess.Popen[str], tmp_path: Path, flocks: bool
) -> None:
    run = holdtrue.Run(tmp_path / "run", on_error="raise", value=2)
    with pytest.raises(holdtrue.SaveError) as caught:
        run.save(2)
    (finding,) = caught.value.report.errors
    assert finding.code == "run-held"
    assert str(other.pid) in finding.what
    assert socket.gethostname() in finding.what
    assert run.steps() == [1]
    # Readers do not ask.
    assert holdtrue.open(tmp_path / "run")["value"] == 1
    assert holdtrue.verify(tmp_path / "run").findings == ()
    assert run.resume(allow=["value-differs"]) == 1


def test_the_lock_of_a_dead_process_is_taken_over(
    other: subprocess.Popen[str], tmp_path: Path, flocks: bool, caplog: pytest.LogCaptureFixture
) -> None:
    other.send_signal(signal.SIGKILL)
    other.wait()
    run = holdtrue.Run(tmp_path / "run", on_error="raise", value=2)
    run.save(2, wait=True)
    assert str(other.pid) in caplog.text
    assert run.steps() == [1, 2]
    run.close()
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_number_that_another_process_has_now_is_no_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_flock(monkeypatch)
    (tmp_path / "run").mkdir()
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": "x", "began": "1"}
    (tmp_path / "run" / ".lock").write_text(json.dumps(owner))
    run = holdtrue.Run(tmp_path / "run", on_error="raise", value=2)
    run.save(1, wait=True)
    run.close()


def test_an_owner_on_another_machine_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_flock(monkeypatch)
    (tmp_path / "run").mkdir()
    owner = {"pid": 1, "host": "elsewhere", "since": "2020-01-01T00:00:00+00:00"}
    (tmp_path / "run" / ".lock").write_text(json.dumps(owner))
    with pytest.raises(holdtrue.SaveError) as caught:
        holdtrue.Run(tmp_path / "run", on_error="raise", value=2).save(1)
    assert "elsewhere" in caught.value.report.errors[0].what


@pytest.mark.parametrize("content", [b"", b"{", b'{"pid": 1, "ho', bytes(150)])
def test_a_lock_file_that_says_nothing(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_bytes(content)
    run = holdtrue.Run(tmp_path / "run", on_error="raise", value=2)
    run.save(1, wait=True)
    run.close()


def test_runs_of_one_process_share_their_lock(tmp_path: Path) -> None:
    first, second = (holdtrue.Run(tmp_path / "run", on_error="raise", value=n) for n in (1, 2))
    first.save(1, wait=True)
    second.save(2, wait=True)
    first.close()
    assert (tmp_path / "run" / ".lock").exists()
    del second
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_forked_child_does_not_free_its_parents_lock(tmp_path: Path) -> None:
    body = """
        import os
        run.save(1, wait=True)
        if not (child := os.fork()):
            run.close()
            os._exit(0)
        os.waitpid(child, 0)
        print((run.path / ".lock").exists())
    """
    done = subprocess.run(program(tmp_path / "run", body), capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_many_that_start_at_once_leave_one_writer(tmp_path: Path, flocks: bool) -> None:
    body = f"""
        if {not flocks}:
            from holdtrue.storage import locking
            def refused(*_): raise OSError(95, "not supported")
            locking.fcntl.flock = refused
        try:
            run.save(int(sys.argv[1]), wait=True)
            print("writer", flush=True)
            time.sleep(3)
        except holdtrue.SaveError as error:
            print(error.report.errors[0].code, flush=True)
    """
    command = program(tmp_path / "run", body)
    began = [
        subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, text=True) for n in range(4)
    ]
    said = sorted(process.communicate()[0].strip() for process in began)
    # One that starts after the first has ended may write too; at no time did two.
    assert set(said) <= {"writer", "run-held"}
    assert said.count("writer") == len(holdtrue.Run(tmp_path / "run").steps())


def in_child(path: Path, body: str) -> str:
    """What a program says that saves into the run, and then forks."""
    lines = "run.save(1, wait=True)\n" + textwrap.dedent(body)
    done = subprocess.run(program(path, lines), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_forked_child_is_another_writer(tmp_path: Path) -> None:
    said = in_child(
        tmp_path / "run",
        """
        import os
        if not (child := os.fork()):
            try:
                run.save(5, wait=True)
            except holdtrue.SaveError as error:
                print(error.report.errors[0].code, flush=True)
            os._exit(0)
        os.waitpid(child, 0)
        run.save(2, wait=True)
        print(run.steps())
        """,
    )
    assert said.split("\n") == ["run-held", "[1, 2]", ""]


def test_a_dead_process_is_no_owner_while_its_children_live(tmp_path: Path) -> None:
    said = in_child(
        tmp_path / "run",
        """
        import os, signal
        if not (child := os.fork()):
            os.closerange(0, 3)  # whoever reads them would wait for this process
            time.sleep(60)
            os._exit(0)
        print(child, flush=True)
        os._exit(0)
        """,
    )
    try:
        run = holdtrue.Run(tmp_path / "run", on_error="raise", value=2)
        run.save(2, wait=True)
        run.close()
    finally:
        os.kill(int(said), signal.SIGKILL)  # it has lived until now


def test_a_directory_that_was_removed_is_locked_anew(tmp_path: Path) -> None:
    run = holdtrue.Run(tmp_path / "run", on_error="raise", value=1)
    run.save(1, wait=True)
    shutil.rmtree(tmp_path / "run")
    command = program(tmp_path / "run", "run.save(1, wait=True); print('saved'); time.sleep(60)")
    other = subprocess.Popen([*command[:1], "-u", *command[1:]], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "saved\n"
        with pytest.raises(holdtrue.SaveError) as caught:
            run.save(2)
        assert caught.value.report.errors[0].code == "run-held"
        run.close()
        assert (tmp_path / "run" / ".lock").exists()
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
