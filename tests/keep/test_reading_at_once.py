"""The tensors of a part that is taken out come in one pass, and say of damage what each would."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import holdtrue
from holdtrue.restore import fresh

DTYPES = (torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.bool, torch.complex64)


def parts() -> dict[str, Any]:
    model = nn.ParameterList(torch.rand(n % 7 + 1, 40) for n in range(200))
    model.register_buffer("not_kept", torch.rand(4), persistent=False)
    tied = torch.rand(30)
    values = {f"v{n}": (torch.rand(5, 6) * 9).to(dtype) for n, dtype in enumerate(DTYPES)}
    values |= {"scalar": torch.tensor(2.5), "tied": [tied, tied], "none": torch.empty(0, 3)}
    optimizer = torch.optim.Adam(model.parameters())
    model[0].sum().backward()
    model[1].sum().backward()
    optimizer.step()
    return {"model": model, "values": values, "optimizer": optimizer}


def same(a: Any, b: Any) -> None:
    assert torch.equal(torch.as_tensor(a).view(-1), torch.as_tensor(b).view(-1))


def test_all_come_in_one_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = parts()
    holdtrue.save(tmp_path / "c", **given)
    alone: list[str] = []
    real = fresh.read_proven

    def read_proven(lazy: Any, proven: Any, name: str) -> Any:
        alone.append(name)
        return real(lazy, proven, name)

    monkeypatch.setattr(fresh, "read_proven", read_proven)
    checkpoint = holdtrue.open(tmp_path / "c")
    model = checkpoint["model"]
    values, optimizer = checkpoint["values"], checkpoint["optimizer"]
    assert alone == ["values/none"]  # it has no bytes
    assert list(model) == list(given["model"].state_dict())
    for name, tensor in given["model"].state_dict().items():
        same(model[name], tensor)
        assert not model[name].requires_grad
        assert type(model[name]) is torch.Tensor
    for name, tensor in given["values"].items():
        if name != "tied":
            assert values[name].dtype == tensor.dtype
            assert values[name].shape == tensor.shape
            same(values[name].view(torch.uint8) if tensor.ndim else values[name],
                 tensor.view(torch.uint8) if tensor.ndim else tensor)  # fmt: skip
    assert values["tied"][0] is values["tied"][1]
    moments = optimizer["state"]["model/0"]
    for name, tensor in given["optimizer"].state[given["model"][0]].items():
        same(moments[name], tensor)


@pytest.mark.parametrize("part", ["model", "values", "optimizer"])
def test_damage_is_told_as_of_one_tensor(part: str, tmp_path: Path) -> None:
    holdtrue.save(tmp_path / "c", **parts())
    checkpoint = holdtrue.open(tmp_path / "c")
    keys = [k for k, t in checkpoint.view.tensors.items() if k.startswith(part) and t.pieces]
    key = next(k for k in keys if checkpoint.view.tensors[k].pieces[0].storage.nbytes > 20)
    storage = checkpoint.view.tensors[key].pieces[0].storage
    file = Path(storage.file)
    data = bytearray(file.read_bytes())
    data[storage.offset + 9] ^= 1
    file.write_bytes(data)
    with pytest.raises(holdtrue.DamageError) as at_once:
        checkpoint[part]
    with pytest.raises(holdtrue.DamageError) as alone:
        checkpoint.tensors[key].torch()
    assert at_once.value.report.findings[0].where == alone.value.report.findings[0].where
    assert at_once.value.report.findings == alone.value.report.findings
    for other in {"model", "values", "optimizer"} - {part}:
        checkpoint[other]
