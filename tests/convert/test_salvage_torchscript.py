import pytest
import torch

from holdtrue.doctor.salvage import salvage
from holdtrue.errors import HoldtrueError


@pytest.mark.parametrize("to", ["holdtrue", "torch", "safetensors"])
def test_a_script_cut_short_gives_its_storages(tmp_path, to):
    module = torch.jit.script(torch.nn.Linear(60, 60))
    module.save(str(tmp_path / "ts.pt"))
    data = (tmp_path / "ts.pt").read_bytes()
    kept = 0
    for share in range(1, 10):
        cut = tmp_path / f"cut{share}.pt"
        cut.write_bytes(data[: len(data) * share // 10])
        try:
            kept += salvage(cut, tmp_path / f"{share}.out", to=to).tensors
        except HoldtrueError:
            continue
    assert kept
