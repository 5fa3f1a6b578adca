"""What a file or a path can hold must never end a command in a traceback."""

import pickle
from pathlib import Path
from struct import pack

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import holdtrue
from holdtrue.cli import cli


def inspect(path) -> str:
    done = CliRunner().invoke(cli, ["inspect", str(path)])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.output


def test_a_number_of_thousands_of_digits_is_shown_short(tmp_path):
    path = tmp_path / "huge.pkl"
    for body in (b"}X\1\0\0\0a\x8b", b"]\x8b"):
        tail = b"s." if body[:1] == b"}" else b"a."
        path.write_bytes(b"\x80\x02" + body + pack("<i", 5000) + b"\x7f" * 5000 + tail)
        assert "0x" in inspect(path)


def test_a_list_of_a_million_values_is_shown_short(tmp_path):
    path = tmp_path / "long.pkl"
    path.write_bytes(pickle.dumps({"part": list(range(100_000))}))
    assert len(inspect(path)) < 1000


def test_arrays_and_tensors_are_called_so(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(3))
    torch.save(torch.ones(3), tmp_path / "t.pt")
    assert "LazyTensor" not in inspect(tmp_path / "a.npy") + inspect(tmp_path / "t.pt")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no such file here")
def test_a_file_that_cannot_be_read_is_refused():
    with pytest.raises(holdtrue.OpenError):
        holdtrue.open("/proc/self/mem")


def test_an_empty_path_is_not_the_current_directory():
    with pytest.raises(holdtrue.OpenError) as error:
        holdtrue.open("")
    assert error.value.report.findings[0].what == "the path is empty"


def test_a_link_without_its_target(tmp_path):
    (tmp_path / "model.pt").symlink_to(tmp_path / "gone.pt")
    with pytest.raises(holdtrue.OpenError) as error:
        holdtrue.open(tmp_path / "model.pt")
    assert "gone.pt" in error.value.report.findings[0].why
