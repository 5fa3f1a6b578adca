# ruff: noqa: E501  (a table of lies, one a line)
"""Bad input: each way of being wrong ends in one clear finding, and nothing is lost."""

import copy
import json
import os
import resource
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
    run = holdtrue.Run(small_disk / "run", model=model, keep=holdtrue.Keep(last=2))
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


# -- manifests that lie ---------------------------------------------------------------------------

BIG = 1 << 62
Lie = Callable[[dict[str, Any]], object]


def _tensor(body: dict[str, Any]) -> dict[str, Any]:
    return body["tensors"]["model/0.weight"]


def _chunk(body: dict[str, Any]) -> dict[str, Any]:
    return _tensor(body)["chunks"][0]


def _cycle(body: dict[str, Any]) -> None:
    for a, b in (("model/0.weight", "model/0.bias"), ("model/0.bias", "model/0.weight")):
        body["tensors"][a] = {"dtype": "float32", "shape": [1], "layout": "subclass",
                              "class_name": "x.Y", "components": {"inner": b}}  # fmt: skip


def _chain(body: dict[str, Any]) -> None:
    """Each tensor made of two of the next: a small file that asks for 2**60 of them."""
    for i in range(60):
        inner = f"model/c{i + 1}"
        body["tensors"][f"model/c{i}"] = {
            "dtype": "float32", "shape": [1], "layout": "subclass", "class_name": "x.Y",
            "components": {"a": inner, "b": inner},
        }  # fmt: skip
    body["tensors"]["model/c60"] = dict(_tensor(body))
    body["parts"]["model"]["state"]["entries"]["0.weight"] = "model/c0"


def _state(body: dict[str, Any], part: str = "note") -> dict[str, Any]:
    return body["parts"][part]


def _deep(body: dict[str, Any]) -> None:
    node: Any = 1
    for _ in range(400):
        node = [node]
    _state(body)["state"] = node


def _sparse(**more: Any) -> Lie:
    def lie(body: dict[str, Any]) -> None:
        _tensor(body).pop("chunks")
        _tensor(body).update(layout="sparse_coo", **more)

    return lie


LIES: dict[str, Lie] = {
    "file name with ..": lambda b: b["files"].update({"../x": b["files"]["model.safetensors"]}),
    "absolute file name": lambda b: b["files"].update({"/etc/passwd": b["files"]["model.safetensors"]}),
    "file name with a NUL": lambda b: b["files"].update({"a\0": b["files"]["model.safetensors"]}),
    "file of negative size": lambda b: b["files"]["model.safetensors"].update(nbytes=-1),
    "file of 2^62 bytes": lambda b: b["files"]["model.safetensors"].update(nbytes=BIG),
    "header of 2^62 bytes": lambda b: b["files"]["model.safetensors"].update(header=BIG),
    "header of negative size": lambda b: b["files"]["model.safetensors"].update(header=-1),
    "header of no bytes": lambda b: b["files"]["model.safetensors"].update(
        header=0, header_digest=xxhash.xxh3_128_hexdigest(b"")),
    "header digest of odd text": lambda b: b["files"]["model.safetensors"].update(header_digest="\0"),
    "chunk in an unlisted file": lambda b: _chunk(b).update(file="x.safetensors"),
    "chunk outside": lambda b: _chunk(b).update(file="../model.safetensors"),
    "chunk of no tensor": lambda b: _chunk(b).update(name="nothing"),
    "chunk digest wrong": lambda b: _chunk(b).update(digest="0" * 32),
    "chunk without digest": lambda b: _chunk(b).update(digest=""),
    "chunk with a negative start": lambda b: _chunk(b).update(start=[-1, 0]),
    "chunk past the tensor": lambda b: _chunk(b).update(start=[5, 5], shape=[1, 2]),
    "chunk with too few dimensions": lambda b: _chunk(b).update(start=[0], shape=[2]),
    "chunk start of one dimension": lambda b: _chunk(b).update(start=[0]),
    "chunk smaller than the tensor": lambda b: (
        _tensor(b).update(shape=[1000, 1000]), _chunk(b).update(start=[0, 0], shape=[1, 2])),
    "chunks that overlap": lambda b: _tensor(b).update(chunks=[_chunk(b)] * 2),
    "no chunks": lambda b: _tensor(b).update(chunks=[]),
    "no chunks and a size of 2^62": lambda b: _tensor(b).update(chunks=[], shape=[BIG]),
    "shape that does not match": lambda b: _tensor(b).update(shape=[3, 7]),
    "shape of 2^62": lambda b: _tensor(b).update(shape=[BIG, BIG]),
    "shape of nothing times 2^62": lambda b: _tensor(b).update(shape=[0, BIG]),
    "negative shape": lambda b: _tensor(b).update(shape=[-1, -2]),
    "a hundred dimensions": lambda b: _tensor(b).update(shape=[1] * 100),
    "strides past the bytes": lambda b: _tensor(b).update(stride=[1, BIG]),
    "negative strides": lambda b: _tensor(b).update(stride=[-1, -1]),
    "strides of another length": lambda b: _tensor(b).update(stride=[1]),
    "unknown dtype": lambda b: _tensor(b).update(dtype="float5"),
    "dtype that is a torch function": lambda b: _tensor(b).update(dtype="load"),
    "another dtype of the same size": lambda b: _tensor(b).update(dtype="quint8"),
    "unknown layout": lambda b: _tensor(b).update(layout="spiral"),
    "layout meta": lambda b: _tensor(b).update(layout="meta"),
    "quantised without quantiser": lambda b: _tensor(b).update(layout="quantized", dtype="qint32"),
    "quantised with an odd scale": lambda b: _tensor(b).update(
        layout="quantized", dtype="qint32", quantizer={"scheme": "x", "scale": 0.0, "zero_point": BIG}),
    "quantised per channel without scales": lambda b: _tensor(b).update(
        layout="quantized", dtype="qint32", quantizer={"scheme": "per_channel_affine", "axis": BIG}),
    "quantised float": lambda b: _tensor(b).update(
        layout="quantized", quantizer={"scheme": "per_tensor_affine", "scale": 1.0, "zero_point": 0}),
    "sparse without components": _sparse(),
    "sparse of wrong components": _sparse(
        components={"indices": "model/0.bias", "values": "model/0.bias"}),
    "sparse of 2^62": _sparse(
        shape=[BIG], components={"indices": "model/0.bias", "values": "model/0.bias"}),
    "component that is missing": _sparse(components={"indices": "model/x"}),
    "components in a cycle": _cycle,
    "component of itself": lambda b: _tensor(b).update(
        layout="subclass", class_name="x.Y", components={"a": "model/0.weight"}),
    "components that double": _chain,
    "overlap of 2^62": lambda b: _tensor(b).update(overlap=[0, BIG]),
    "overlap before the start": lambda b: _tensor(b).update(overlap=[0, -5]),
    "array of an odd dtype": lambda b: _tensor(b).update(numpy="not a dtype"),
    "array of objects": lambda b: _tensor(b).update(numpy="|O"),
    "array with a dtype of 2^31": lambda b: _tensor(b).update(numpy="|V2147483647"),
    "array dtype with commas": lambda b: _tensor(b).update(numpy="f4,f4"),
    "subclass that is not there": lambda b: _tensor(b).update(class_name="os.system"),
    "uninitialised": lambda b: _tensor(b).update(layout="uninitialized", chunks=[], shape=[]),
    "entry of no tensor": lambda b: _state(b, "model")["state"]["entries"].update({"0.weight": "x"}),
    "entries of a wrong type": lambda b: _state(b, "model")["state"].update(entries=[1]),
    "entry of another part": lambda b: _state(b, "model")["state"]["entries"].update(
        {"0.weight": "optimizer/model/0.weight/momentum_buffer"}),
    "module state of a wrong type": lambda b: _state(b, "model").update(state="x"),
    "no module state": lambda b: _state(b, "model").pop("state"),
    "training flags of a wrong type": lambda b: _state(b, "model")["state"].update(training={"": 3}),
    "custom state of a wrong type": lambda b: _state(b, "model")["state"].update(custom={"0": 3}),
    "extra state of a wrong node": lambda b: _state(b, "model")["state"].update(extra={"0": {"$": 1}}),
    "optimizer state of a wrong type": lambda b: _state(b, "optimizer").update(state=[1, 2]),
    "optimizer without groups": lambda b: _state(b, "optimizer")["state"].update(groups=[]),
    "group settings of a wrong type": lambda b: _state(b, "optimizer")["state"]["groups"][0].update(
        settings=[1]),
    "group parameter twice": lambda b: _state(b, "optimizer")["state"]["groups"][0]["params"].append(
        "model/0.weight"),
    "momentum of another shape": lambda b: _state(b, "optimizer")["state"]["state"].update(
        {"model/0.weight": {"momentum_buffer": {"$": "tensor", "v": "model/0.bias"}}}),
    "momentum that is text": lambda b: _state(b, "optimizer")["state"]["state"].update(
        {"model/0.weight": {"momentum_buffer": "hello"}}),
    "momentum that is missing": lambda b: _state(b, "optimizer")["state"]["state"].update(
        {"model/0.weight": {"momentum_buffer": {"$": "tensor", "v": "gone"}}}),
    "state that is a list": lambda b: _state(b, "optimizer")["state"]["state"].update(
        {"model/0.weight": [1]}),
    "unknown kind of part": lambda b: _state(b).update(kind="executable"),
    "unknown kind of node": lambda b: _state(b).update(state={"$": "call", "v": "os.system"}),
    "kind of node that is a list": lambda b: _state(b).update(state={"$": [], "v": 1}),
    "kind of node that is null": lambda b: _state(b).update(state={"$": None}),
    "node without its value": lambda b: _state(b).update(state={"$": "bytes"}),
    "reference to nothing": lambda b: _state(b).update(state={"$": "ref", "id": []}),
    "reference without a number": lambda b: _state(b).update(state={"$": "ref"}),
    "bytes that are not base64": lambda b: _state(b).update(state={"$": "bytes", "v": "%%%"}),
    "integer of odd digits": lambda b: _state(b).update(state={"$": "int", "v": "0xzz"}),
    "decimal of 10^18 digits": lambda b: _state(b).update(
        state={"$": "timedelta", "v": [10**18, 0, 0]}),
    "scalar of objects": lambda b: _state(b).update(state={"$": "scalar", "v": ["|O", "AAAAAAAAAAA="]}),
    "deque of 2^62": lambda b: _state(b).update(state={"$": "deque", "v": [1], "maxlen": -1}),
    "unhashable key": lambda b: _state(b).update(state={"$": "dict", "v": [[[], 1]]}),
    "pairs that are not pairs": lambda b: _state(b).update(state={"$": "dict", "v": [[1]]}),
    "pairs that are a number": lambda b: _state(b).update(state={"$": "dict", "v": 3}),
    "zone that is a path": lambda b: _state(b).update(
        state={"$": "datetime", "v": "2020-13-45", "tz": {"$": "zoneinfo", "v": "../../etc/passwd"}}),
    "random state of the wrong size": lambda b: _state(b).update(
        state={"$": "random", "v": [3, "AAAA", None]}),
    "torch dtype that is a function": lambda b: _state(b).update(state={"$": "dtype", "v": "load"}),
    "torch device of odd text": lambda b: _state(b).update(state={"$": "device", "v": "moon:9"}),
    "torch layout that is a function": lambda b: _state(b).update(state={"$": "layout", "v": "load"}),
    "torch size of text": lambda b: _state(b).update(state={"$": "size", "v": ["a"]}),
    "generator of a wrong state": lambda b: _state(b).update(
        state={"$": "generator", "v": ["cpu", "AAAA"]}),
    "nested four hundred deep": _deep,
    "random states of a wrong type": lambda b: _state(b, "rng").update(state=[1]),
    "no random states": lambda b: _state(b, "rng").pop("state"),
    "python's random state of a wrong form": lambda b: _state(b, "rng")["state"].update(python=[1]),
    "torch's random state of a wrong form": lambda b: _state(b, "rng")["state"].update(
        torch={"$": "bytes", "v": "AAAA"}),
    "numpy's random state of a wrong form": lambda b: _state(b, "rng")["state"].update(numpy=7),
    "tensors of a wrong type": lambda b: b.update(tensors=[1]),
    "parts of a wrong type": lambda b: b.update(parts=None),
    "files of a wrong type": lambda b: b.update(files="x"),
    "step of a wrong type": lambda b: b.update(step="one"),
    "version zero": lambda b: b.update(version=0),
    "another format": lambda b: b.update(format="holdfalse"),
    "no environment": lambda b: b.pop("environment"),
}  # fmt: skip

# Lies that describe a checkpoint which could have been written; they may restore.
HARMLESS = {"subclass that is not there", "momentum of another shape", "momentum that is text",
            "state that is a list"}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_sealed_lie_is_one_clear_finding(lie: str, kept: Path) -> None:
    body = copy.deepcopy(unseal(kept))
    LIES[lie](body)
    (kept / "manifest.json").write_bytes(seal(body))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    if lie in HARMLESS:
        holdtrue.open(kept).restore(**parts(2))
    else:
        errors = restore_fails(kept).errors
        assert len(errors) == 1, [f.code for f in errors]
    try:
        holdtrue.verify(kept)
        checkpoint = holdtrue.open(kept)
        repr(checkpoint), checkpoint.metrics
    except holdtrue.HoldtrueError:
        pass
    else:
        for part in checkpoint.parts:
            try:
                checkpoint[part]
            except holdtrue.HoldtrueError:
                continue
        for tensor in checkpoint.tensors.values():
            for take in (tensor.torch, tensor.numpy):
                try:
                    take()
                except holdtrue.HoldtrueError:
                    continue

    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 300_000, f"{grown:,} KiB"


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"null", b"[]", b"\0" * 100, b"{}" * 50, b"[" * 100_000, b"\xff\xfe{}",
     b'{"format":"holdtrue","version":99999}', b'{"format":"holdtrue","version":1}'],
    ids=range(10),
)  # fmt: skip
def test_manifests_that_are_something_else(raw: bytes, kept: Path) -> None:
    (kept / "manifest.json").write_bytes(raw)
    assert found(kept) == {"manifest-damaged"}


def test_a_deeply_nested_sealed_manifest(kept: Path) -> None:
    raw = b'{"format":"holdtrue","version":1,"x":' + b"[" * 200_000 + b"]" * 200_000
    digest = xxhash.xxh3_128_hexdigest(raw).encode()
    (kept / "manifest.json").write_bytes(raw + b',"xxh3_128":"' + digest + b'"}\n')
    assert found(kept) == {"manifest-damaged"}
