"""Models whose tensors are maps of the file."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import holdtrue


class Odd(nn.Module):
    """Tied, frozen, channels-last, bfloat16, a buffer that state_dict leaves out, an empty one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.norm = nn.BatchNorm1d(5)
        self.low = nn.Parameter(torch.randn(7).bfloat16(), requires_grad=False)
        self.register_buffer("left_out", torch.arange(9), persistent=False)
        self.register_buffer("empty", torch.empty(0, 3))


def kept(path: Path, model: nn.Module) -> holdtrue.Checkpoint:
    holdtrue.save(path, model=model)
    return holdtrue.open(path, trust=[Odd])


def everything(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def test_a_mapped_model_is_the_model(tmp_path: Path) -> None:
    checkpoint = kept(tmp_path / "kept", Odd())
    read, mapped = checkpoint.build(), checkpoint.build(mapped=True)
    assert everything(mapped).keys() == everything(read).keys()
    for name, tensor in everything(read).items():
        other = everything(mapped)[name]
        assert torch.equal(tensor, other), name
        assert (tensor.dtype, tensor.stride(), tensor.requires_grad) == (
            other.dtype,
            other.stride(),
            other.requires_grad,
        )
        assert type(tensor) is type(other)
    assert mapped.head.weight is mapped.embed.weight


def test_the_tensors_lie_in_the_file(tmp_path: Path) -> None:
    """By the addresses that the system says are maps of it."""
    mapped = kept(tmp_path / "kept", nn.Linear(300, 200)).build(mapped=True)
    address = mapped.weight.data_ptr()
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    ranges = [
        [int(n, 16) for n in fields[0].split("-")]
        for fields in maps
        if fields[-1].endswith("kept/model.safetensors")
    ]
    assert any(first <= address < last for first, last in ranges)


def test_training_it_never_changes_the_file(tmp_path: Path) -> None:
    checkpoint = kept(tmp_path / "kept", nn.Linear(30, 20))
    before = (tmp_path / "kept" / "model.safetensors").read_bytes()
    model = checkpoint.build(mapped=True)
    untouched = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model(torch.ones(2, 30)).sum().backward()
    optimizer.step()
    assert not torch.equal(model.weight, untouched)
    assert (tmp_path / "kept" / "model.safetensors").read_bytes() == before
    assert torch.equal(checkpoint.build(mapped=True).weight, untouched)


@pytest.mark.parametrize("mapped", [False, True])
def test_damage_is_found_before_anyone_has_it(mapped: bool, tmp_path: Path) -> None:
    checkpoint = kept(tmp_path / "kept", nn.Linear(30, 20))
    file = tmp_path / "kept" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(holdtrue.DamageError) as caught:
        checkpoint.build(mapped=mapped)
    assert [f.code for f in caught.value.report.errors] == ["digest-mismatch"]


@pytest.mark.parametrize("cut", [None, 0, 100])
def test_a_file_that_went_since_it_was_opened(cut: int | None, tmp_path: Path) -> None:
    checkpoint = kept(tmp_path / "kept", nn.Linear(30, 20))
    file = tmp_path / "kept" / "model.safetensors"
    if cut is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(holdtrue.DamageError):
        checkpoint.build(mapped=True)


@pytest.mark.parametrize("mapped", [False, True])
def test_large_tensors_are_like_any_others(mapped: bool, tmp_path: Path) -> None:
    """Their memory is asked for apart, or is the file's: what torch does with tensors works."""
    model = kept(tmp_path / "kept", nn.Linear(1500, 1200)).build(mapped=mapped)
    values = model.weight.detach().clone()
    assert model.weight.untyped_storage().nbytes() == values.nbytes
    assert torch.equal(copy.deepcopy(model).weight, values)
    torch.save(model.state_dict(), tmp_path / "m.pt")
    assert torch.equal(torch.load(tmp_path / "m.pt")["weight"], values)
    model.half().float()
    again = kept(tmp_path / "again", nn.Linear(1500, 1200)).build(mapped=mapped)
    values = again.weight.detach().clone()
    again.share_memory()
    assert torch.equal(again.weight, values)


def test_it_outlives_the_checkpoint(tmp_path: Path) -> None:
    checkpoint = kept(tmp_path / "kept", nn.Linear(30, 20))
    model = checkpoint.build(mapped=True)
    before = checkpoint.build().weight
    holdtrue.save(tmp_path / "kept", model=nn.Linear(30, 20), overwrite=True)
    assert torch.equal(model.weight, before)
    torch.save(model.weight, tmp_path / "one.pt")
    assert (tmp_path / "one.pt").stat().st_size < 30 * 20 * 4 + 5000  # its own bytes alone
