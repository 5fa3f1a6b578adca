# ruff: noqa: E501  (a table of lies, one a line)
"""Bad input: each way of being wrong ends in one clear finding, and nothing is lost."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from snapshots import everything, first_difference
from torch import nn

import holdtrue

ROOT = Path(__file__).resolve().parents[2]
AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0


def parts(seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(3, 2)).sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer, "note": [seed]}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "kept"
    holdtrue.save(path, step=1, metrics={"loss": 0.5}, **parts(1))
    return path


@pytest.fixture
def kept(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "kept"))


def seal(body: dict[str, Any]) -> bytes:
    """A manifest that proves whole, whatever it says."""
    raw = json.dumps(body, separators=(",", ":")).encode()[:-1]
    return raw + b',"xxh3_128":"' + xxhash.xxh3_128_hexdigest(raw).encode() + b'"}\n'


def unseal(path: Path) -> dict[str, Any]:
    body = json.loads((path / "manifest.json").read_bytes())
    del body["xxh3_128"]
    return body


def refusal(path: Path, act: Callable[[], object]) -> holdtrue.Report:
    """The report of the error that `act` raises; each finding is complete."""
    with pytest.raises(holdtrue.HoldtrueError) as caught:
        act()
    report = caught.value.report
    assert report.errors
    for finding in report.errors:
        assert finding.what
        assert finding.where
        assert finding.why
        assert finding.fix
        assert len(finding.why) < 2000
    assert "weights_only" not in str(caught.value)
    return report


def restore_fails(path: Path) -> holdtrue.Report:
    targets = parts(2)
    before = everything(**targets)
    report = refusal(path, lambda: holdtrue.open(path).restore(**targets))
    assert first_difference(before, everything(**targets)) == ""
    return report


def found(path: Path) -> set[str]:
    """Codes that verify tells; restoring has to fail too."""
    try:
        report = holdtrue.verify(path)
    except holdtrue.HoldtrueError as error:
        report = error.report
    assert not report.ok
    assert restore_fails(path).errors
    return {f.code for f in report.errors}


# -- paths ----------------------------------------------------------------------------------------


def only(path: Path) -> holdtrue.Finding:
    errors = refusal(path, lambda: holdtrue.open(path)).errors
    assert len(errors) == 1
    return errors[0]


def test_a_path_that_is_not_there_suggests_the_nearest(kept: Path) -> None:
    finding = only(kept.parent / "kpet")
    assert finding.code == "path-missing"
    assert str(kept) in finding.fix
    assert only(kept.parent / "no" / "such" / "place").code == "path-missing"
    assert only(kept.parent / "kpet@best").code == "path-missing"


def test_relative_paths_suggest_too(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(kept.parent)
    assert "did you mean kept?" in only(Path("kpet")).fix


@pytest.mark.parametrize(
    "name", ["a\0b", "x" * 300, "", "@best", "@", "kept@@", "kept@-1", "~nobody"]
)
def test_odd_paths_are_refused_in_words(name: str, kept: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(kept.parent)
    refusal(kept, lambda: holdtrue.open(name))
    refusal(kept, lambda: holdtrue.verify(name))


def test_what_is_not_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("hello")
    (tmp_path / "poem").write_text("roses are red")
    for name in ("empty", "other", "poem"):
        only(tmp_path / name)


def test_half_written(kept: Path, tmp_path: Path) -> None:
    staging = tmp_path / "run" / ".staging"
    staging.mkdir(parents=True)
    shutil.copytree(kept, staging / "step-000000001.host-1.abcdef")
    (staging / "step-000000001.host-1.abcdef" / "manifest.json").unlink()
    assert only(tmp_path / "run").code == "half-written"
    assert only(staging / "step-000000001.host-1.abcdef").code == "half-written"


def test_a_directory_whose_manifest_was_not_copied(kept: Path) -> None:
    (kept / "manifest.json").unlink()
    finding = only(kept)
    assert finding.code == "manifest-missing"
    assert finding.where == str(kept / "manifest.json") or "manifest.json" in str(finding)


def test_a_newer_format_version(kept: Path) -> None:
    body = unseal(kept)
    body["version"] = 2
    body["parts"] = "laid out in a way that nobody here knows"
    (kept / "manifest.json").write_bytes(seal(body))
    finding = only(kept)
    assert finding.code == "format-newer"
    assert "upgrade" in finding.fix


# -- files ----------------------------------------------------------------------------------------


def files(path: Path) -> list[str]:
    return sorted(set(os.listdir(path)) - {".lock"})


DATA = ["model.safetensors", "optimizer.safetensors"]


@pytest.mark.parametrize("name", DATA)
def test_a_missing_file(name: str, kept: Path) -> None:
    (kept / name).unlink()
    assert found(kept) == {"file-missing"}


@pytest.mark.parametrize("name", [*DATA, "manifest.json"])
def test_a_file_of_every_shorter_length(name: str, kept: Path) -> None:
    data = (kept / name).read_bytes()
    code = "manifest-damaged" if name == "manifest.json" else "file-truncated"
    for length in [*range(0, len(data), max(1, len(data) // 60)), len(data) - 1]:
        (kept / name).write_bytes(data[:length])
        assert found(kept) == {code}, length


@pytest.mark.parametrize("name", [*DATA, "manifest.json"])
@pytest.mark.parametrize("tail", [b"\0", b"\n", b"junk" * 1000])
def test_a_longer_file(name: str, tail: bytes, kept: Path) -> None:
    with (kept / name).open("ab") as file:
        file.write(tail)
    assert found(kept) == {"manifest-damaged" if name == "manifest.json" else "file-longer"}


@pytest.mark.parametrize("name", DATA)
def test_a_file_replaced_by_a_link_or_directory(name: str, kept: Path) -> None:
    (kept / name).rename(kept.parent / "elsewhere")
    (kept / name).symlink_to(kept.parent / "elsewhere")
    assert found(kept) == {"not-a-file"}
    (kept / name).unlink()
    (kept / name).mkdir()
    assert found(kept) == {"not-a-file"}


@pytest.mark.parametrize("name", [*DATA, "manifest.json"])
def test_a_pipe_in_the_place_of_a_file_does_not_hang(name: str, kept: Path) -> None:
    (kept / name).unlink()
    os.mkfifo(kept / name)
    assert found(kept) & {"not-a-file", "manifest-damaged"}


def test_a_manifest_that_is_a_directory(kept: Path) -> None:
    (kept / "manifest.json").unlink()
    (kept / "manifest.json").mkdir()
    found(kept)


def test_several_damaged_files_are_all_named(kept: Path) -> None:
    for name in DATA:
        (kept / name).unlink()
    assert {Path(f.where).name for f in holdtrue.verify(kept).errors} == set(DATA)


def test_files_swapped_with_one_another(kept: Path) -> None:
    a, b = (kept / name for name in DATA)
    a.rename(kept / "x")
    b.rename(a)
    (kept / "x").rename(b)
    assert found(kept) <= {"file-longer", "file-truncated", "digest-mismatch"}


def test_a_stray_file_is_a_note(kept: Path) -> None:
    (kept / "events.log").write_text("hello")
    report = holdtrue.verify(kept)
    assert report.ok
    assert [f.code for f in report.findings] == ["file-unlisted"]


# -- every byte -----------------------------------------------------------------------------------


def test_every_flipped_byte_of_every_file_is_found(kept: Path) -> None:
    flips = 0
    targets = parts(2)
    before = everything(**targets)
    for name in files(kept):
        data = bytearray((kept / name).read_bytes())
        fd = os.open(kept / name, os.O_WRONLY)
        for i in range(len(data)):
            os.pwrite(fd, bytes([data[i] ^ (1 << i % 8)]), i)
            try:
                report = holdtrue.verify(kept)
            except holdtrue.OpenError as error:
                report = error.report
            assert len(report.errors) == 1, (name, i, report)
            with pytest.raises(holdtrue.HoldtrueError):
                holdtrue.open(kept).restore(**targets)
            os.pwrite(fd, data[i : i + 1], i)
            flips += 1
        os.close(fd)
    assert first_difference(before, everything(**targets)) == ""
    assert holdtrue.verify(kept).findings == ()
    print(f"{flips:,} bytes flipped in {len(files(kept))} files, each one found")


# -- permissions and full disks -------------------------------------------------------------------


def as_nobody(code: str, place: Path) -> str:
    """Run a script as a user without rights here; what it prints."""
    script = (
        "import os, sys, holdtrue, torch\n"
        "from torch import nn\n"
        "import tempfile, holdtrue.engine.read, holdtrue.restore.targets\n"
        # Imports what is needed, since a user without rights may not even read the interpreter.
        "with tempfile.TemporaryDirectory() as warm:\n"
        "    holdtrue.verify(holdtrue.save(warm + '/kept', model=nn.Linear(2, 2)).path)\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "place = sys.argv[1]\n" + textwrap.dedent(code)
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(place)],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


needs_root = pytest.mark.skipif(not AS_ROOT, reason="needs root, to become a user without rights")


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that everyone can reach; pytest's own are private."""
    place = Path(f"/tmp/holdtrue-damage-{os.getpid()}")
    place.mkdir(mode=0o755)
    yield place
    shutil.rmtree(place)


OPENING = """
    for act in (holdtrue.open, holdtrue.verify):
        try:
            print(act(place + "/kept"))
        except holdtrue.HoldtrueError as error:
            print([f.code for f in error.report.errors], error.exit_code)
"""


@needs_root
@pytest.mark.parametrize("closed", ["kept", "kept/manifest.json", "kept/model.safetensors"])
def test_reading_without_permission(closed: str, whole: Path, open_place: Path) -> None:
    shutil.copytree(whole, open_place / "kept")
    (open_place / closed).chmod(0)
    said = as_nobody(OPENING, open_place)
    assert said.count("permission-denied") == 2, said


@needs_root
def test_a_parent_without_permission(whole: Path, open_place: Path) -> None:
    shutil.copytree(whole, open_place / "kept")
    open_place.chmod(0)
    said = as_nobody(OPENING, open_place)
    assert said.count("permission-denied") == 2, said


@needs_root
def test_saving_into_a_read_only_directory(whole: Path, open_place: Path) -> None:
    shutil.copytree(whole, open_place / "kept")
    said = as_nobody(
        """
        for target in ("new", "kept", "deep/er/new"):
            try:
                holdtrue.save(f"{place}/{target}", overwrite=True, model=nn.Linear(2, 2))
            except holdtrue.SaveError as error:
                print([f.code for f in error.report.errors])
        """,
        open_place,
    )
    assert said.count("permission-denied") == 3, said
    assert files(open_place) == ["kept"]
    assert holdtrue.verify(open_place / "kept").findings == ()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if not AS_ROOT:
        pytest.skip("needs root, to mount a small disk")
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine does not let root mount a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    model = nn.Linear(400, 500)
    run = holdtrue.Run(
        small_disk / "run", on_error="raise", model=model, keep=holdtrue.Keep(last=2)
    )
    run.save(1, wait=True)
    nn.init.zeros_(model.bias)  # else its file would be linked
    run.save(2, wait=True)
    for step in (3, 4):
        nn.init.constant_(model.bias, step)
        report = refusal(small_disk, lambda step=step: run.save(step, wait=True))  # type: ignore[misc]
        assert [f.code for f in report.errors] == ["disk-full"]
        assert run.steps() == [1, 2]
        assert files(small_disk / "run") == ["step-000000001", "step-000000002"]
        for path in (small_disk / "run").glob("step-*"):
            assert holdtrue.verify(path).findings == ()
    report = refusal(
        small_disk,
        lambda: holdtrue.save(small_disk / "run" / "step-000000002", overwrite=True, model=model),
    )
    assert [f.code for f in report.errors] == ["disk-full"]
    assert holdtrue.verify(small_disk / "run" / "step-000000002").findings == ()
    run.close()
