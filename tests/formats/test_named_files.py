"""Files and folders that are no checkpoint themselves are called what they are."""

import zlib

import joblib
import numpy as np
import pytest

import holdtrue
from holdtrue.errors import OpenError


def refusal(path) -> holdtrue.Finding:
    with pytest.raises(OpenError) as error:
        holdtrue.open(path)
    return error.value.report.findings[0]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_joblib_dump_is_not_called_damaged(tmp_path, protocol):
    path = tmp_path / "a.joblib"
    joblib.dump({"w": np.zeros((3, 4)), "a": 1}, path, protocol=protocol)
    assert "joblib.load" in refusal(path).fix


@pytest.mark.parametrize("level", [1, 3, 6, 9])
def test_zlib_is_named(tmp_path, level):
    path = tmp_path / "a.z"
    path.write_bytes(zlib.compress(bytes(1000) + b"weights", level))
    finding = refusal(path)
    assert (finding.code, finding.what) == ("compressed-file", "the file is compressed with zlib")


def test_a_folder_of_checkpoints_names_them(tmp_path):
    for name in ("first", "second"):
        holdtrue.save(tmp_path / name, value=1)
    finding = refusal(tmp_path)
    assert "first, second" in finding.why
    assert "@" not in finding.fix
