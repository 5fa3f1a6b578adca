"""Binary files that were changed as text are told, and given back by the printed line."""

import shlex
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

import holdtrue


def _found(path, code):
    return next(f for f in holdtrue.diagnose(path).findings if f.code == code)


CHANGES = {
    "line ends": lambda data: data.replace(b"\n", b"\r\n"),
    "latin-1": lambda data: data.decode("latin-1").encode(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("legacy", [False, True])
def test_the_line_takes_the_change_back(change, legacy, tmp_path):
    truth = {"w": torch.randn(40, 50, generator=torch.Generator().manual_seed(1))}
    path = tmp_path / "m.pt"
    torch.save(truth, path, _use_new_zipfile_serialization=not legacy)
    before = path.read_bytes()
    assert b"\r\n" not in before
    path.write_bytes(CHANGES[change](before))
    program, *arguments = shlex.split(_found(path, "transferred-as-text").command)
    assert program == "python"
    subprocess.run([sys.executable, *arguments], check=True)
    assert (tmp_path / "m-as-binary.pt").read_bytes() == before


def test_what_a_decoder_lost_is_not_promised(tmp_path):
    path = tmp_path / "m.pt"
    torch.save({"w": torch.randn(40, 50)}, path)
    path.write_bytes(path.read_bytes().decode("utf-8", "replace").encode())
    found = _found(path, "transferred-as-text")
    assert "lost" in found.why
    assert not found.command


def test_a_cut_archive_is_no_text(tmp_path):
    path = tmp_path / "m.pt"
    torch.save({"w": torch.randn(40, 50)}, path)
    path.write_bytes(path.read_bytes()[:5000])
    assert _found(path, "zip-no-directory")


@pytest.mark.parametrize("by", [-100, 7])
def test_safetensors_of_another_size_have_a_whole_header(by, tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(400)}, path)
    data = path.read_bytes()
    path.write_bytes(data[:by] if by < 0 else data + b"x" * by)
    found = _found(path, "safetensors-header-damaged")
    assert f"{abs(by)} bytes" in found.what
    assert found.why.startswith("the header is whole")
