"""What a file shows by itself: damaged, refused, odd and healthy ones, written by torch itself."""

import argparse
import collections
import datetime
import os
import pathlib
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import holdtrue
from holdtrue.formats.weights_only import GLOBALS, OPCODES

CORPUS = Path(
    os.environ.get("HOLDTRUE_CORPUS", Path(__file__).resolve().parents[3] / "shared/corpus")
)
_VALUES = {
    "numpy number": np.float64(0.5),
    "numpy array": np.arange(3.0),
    "numpy random state": np.random.RandomState(1).get_state(),
    "namespace": argparse.Namespace(lr=0.1),
    "path": pathlib.PurePosixPath("data"),
    "date": datetime.datetime(2024, 1, 2),
    "defaultdict": collections.defaultdict(list, a=[1]),
    "deque": collections.deque([1]),
    "ordered": collections.OrderedDict(a=1),
    "counter": collections.Counter("aab"),
    "set": {1, 2},
    "bytes": b"abc",
    "bytearray": bytearray(b"abc"),
    "complex": 1 + 2j,
    "dtype": torch.float16,
    "size": torch.Size((1, 2)),
    "device": torch.device("cpu"),
    "large number": 1 << 80,
    "larger number": 1 << 3000,
    "none": None,
    "float8": torch.ones(2).to(torch.float8_e5m2),
    "sparse": torch.eye(3).to_sparse(),
    "quantised": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "function": torch.nn.functional.relu,
    "layout": torch.sparse_coo,
}


def found(path, **more):
    return {finding.code: finding for finding in holdtrue.diagnose(path, **more).findings}


def _torch_takes(path) -> bool:
    try:
        torch.load(path, weights_only=True)
    except pickle.UnpicklingError:
        return False
    except AttributeError:  # torch does not read the float8 that it wrote in the old format
        return True
    except RuntimeError as error:
        return "weights_only" not in str(error)
    return True


def test_the_lists_are_those_of_the_installed_torch():
    from torch import _weights_only_unpickler as unpickler

    # In a process of its own: what a test has imported may have added to torch's list.
    program = """
from torch import _weights_only_unpickler as unpickler
print(*sorted({*unpickler._get_allowed_globals(), *unpickler._get_user_allowed_globals()}))
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert set(said.stdout.split()) == GLOBALS
    spoken = {name for name in vars(unpickler) if name.isupper() and len(name) > 2}
    assert spoken >= OPCODES


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", _VALUES)
def test_what_torch_refuses_is_told_and_nothing_else(kind, protocol, zipped, tmp_path):
    path = tmp_path / "f.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(
            {"w": torch.ones(2), "deep": {"odd": _VALUES[kind]}}, path,
            pickle_protocol=protocol, _use_new_zipfile_serialization=zipped,
        )  # fmt: skip
        takes = _torch_takes(path)
    codes = found(path)
    assert ("weights-only-refuses" in codes) == (not takes)
    if not takes and protocol == 2:
        refused = codes["weights-only-refuses"]
        assert any("deep/odd" in place for place in (refused.where, *refused.places))


def test_the_printed_command_keeps_what_torch_refuses(tmp_path, monkeypatch):
    from holdtrue.cli import cli

    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.ones(2), "acc": np.float64(0.5)}, "run.pt")
    command = found("run.pt")["weights-only-refuses"].command
    program, *words = command.split()
    assert program == "holdtrue"
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code in (0, 1)
    kept = holdtrue.open(words[-1])
    assert any(torch.equal(t.torch(), torch.ones(2)) for t in kept.tensors.values())


def test_a_class_that_is_gone_and_one_that_its_package_never_had(tmp_path):
    path = tmp_path / "m.pt"
    torch.save(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1)), path)
    assert set(found(path)) == {"whole-model", "saved-in-train-mode"}
    data = path.read_bytes().replace(
        b"torch.nn.modules.conv\nConv2d", b"torch.nn.modules.conv\nConv9d"
    )
    path.write_bytes(data)
    assert "Conv9d" in found(path)["class-missing"].what
    path.write_bytes(
        data.replace(b"torch.nn.modules.conv\nConv9d", b"gonepkg.nn.modules.co\nConv9d")
    )
    missing = found(path)["class-missing"]
    assert "`gonepkg` is not installed" in missing.why
    assert missing.command.startswith("holdtrue convert")


def test_a_harmless_record_of_the_standard_library_is_no_attack(tmp_path):
    import logging
    from urllib.parse import urlparse

    values = {"log": logging.makeLogRecord({"msg": "x"}), "url": urlparse("s3://a/b")}
    torch.save({"w": torch.ones(2), **values}, tmp_path / "f.pt")
    codes = found(tmp_path / "f.pt")
    assert "code-in-file" not in codes
    assert "weights-only-refuses" in codes


def test_a_flipped_byte_is_told_when_read_deep_with_what_is_whole(tmp_path):
    path = tmp_path / "f.pt"
    truth = {"a": torch.rand(400), "b": torch.rand(300)}
    torch.save(truth, path)
    data = bytearray(path.read_bytes())
    data[data.index(truth["b"].numpy().tobytes()) + 9] ^= 1
    path.write_bytes(data)
    assert "crc-mismatch" not in found(path)
    told = found(path, deep=True)["crc-mismatch"]
    assert any(": b: float32 [300]" in place for place in told.places)
    assert "1 tensor of 2 whole (a)" in told.why
    assert told.command.startswith("holdtrue salvage")


def test_a_cut_file_says_what_can_be_had(tmp_path):
    path = tmp_path / "f.pt"
    torch.save({f"t{i}": torch.rand(5000) for i in range(6)}, path)
    path.write_bytes(path.read_bytes()[:70_000])
    told = found(path)["zip-no-directory"]
    assert "3 tensors of 6 whole" in told.why
    path.write_bytes(path.read_bytes()[:5000])
    assert "no tensor in it is whole" in found(path)["zip-no-directory"].fix


def test_safetensors_under_a_name_of_torch(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "f.pt")
    assert "safetensors" in found(tmp_path / "f.pt")["wrong-suffix"].what


@pytest.mark.parametrize("path", sorted(p for p in (CORPUS / "weights").rglob("*") if p.is_file()),
                         ids=lambda p: p.name)  # fmt: skip
def test_published_files_give_nothing_above_a_note_that_torch_does_not_find_too(path):
    try:
        report = holdtrue.diagnose(path)
    except holdtrue.HoldtrueError:
        return
    codes = {finding.code for finding in report.findings if finding.severity != "note"}
    assert "rule-failed" not in codes
    if path.suffix != ".safetensors" and codes:
        assert "text-file" in codes or not _torch_takes(path), codes
