"""What looking at a plain file imports: only what that file needs."""

import json
import subprocess
import sys

import pytest
import torch

# Of these nothing is needed to say what a plain file is.
_NOT_NEEDED = (
    "torch",
    "numpy",
    "ml_dtypes",
    "rich.progress",
    "holdtrue.restore",
    "holdtrue.capture",
    "holdtrue.doctor.folders",
    "holdtrue.doctor.convert",
)
_RUN = """
import json, sys
sys.argv = ["holdtrue", "doctor", *sys.argv[1:]]
from holdtrue.cli import main
try:
    main()
except SystemExit as end:
    print(json.dumps([end.code, sorted(sys.modules)]), file=sys.stderr)
"""


def _imported(*arguments: str) -> tuple[int, set[str]]:
    run = subprocess.run(
        [sys.executable, "-c", _RUN, *arguments], capture_output=True, text=True, check=True
    )
    status, names = json.loads(run.stderr.splitlines()[-1])
    return status, set(names)


@pytest.mark.parametrize("kind", ["zip", "training", "legacy", "safetensors"])
def test_a_plain_file_is_told_about_without_torch_or_numpy(tmp_path, kind):
    model = torch.nn.Linear(3, 2)
    path = tmp_path / ("m.safetensors" if kind == "safetensors" else "m.pt")
    if kind == "safetensors":
        from safetensors.torch import save_file

        save_file(model.state_dict(), path)
    elif kind == "training":
        torch.save({"model": model.state_dict(), "epoch": 3}, path)
    else:
        torch.save(model.state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    status, names = _imported(str(path))
    assert status == 0
    assert not {name for name in _NOT_NEEDED if name in names}


def test_reading_all_values_imports_numpy_but_not_torch(tmp_path):
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "m.pt")
    status, names = _imported(str(tmp_path / "m.pt"), "--deep")
    assert status == 0
    assert "numpy" in names
    assert "torch" not in names
