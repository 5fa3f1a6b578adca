"""A model on the meta device is filled like any other, and is on meta again where that fails."""

import shutil
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import holdtrue


class Tied(nn.Module):
    """Of all that may be in the way: ties, recurrent weights, a buffer that is not persistent."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.rnn = nn.LSTM(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 11, bias=False)
        self.head.weight = self.embed.weight
        self.large = nn.Linear(1200, 1200)  # above the size that gets large pages
        self.register_buffer("scale", torch.rand(width), persistent=False)
        self.kept_beside = [self.large.bias]

    def forward(self, tokens: Tensor) -> Tensor:
        found, _ = self.rnn(self.embed(tokens))
        return self.head(self.norm(found) * self.scale)  # type: ignore[no-any-return]


def on_meta() -> Tied:
    with torch.device("meta"):
        return Tied()


def all_on_meta(model: nn.Module) -> bool:
    return all(t.is_meta for t in (*model.parameters(), *model.buffers()))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = Tied()
    path = tmp_path_factory.mktemp("meta") / "kept"
    holdtrue.save(path, model=model, value=3)
    return path


def saved() -> Tied:
    torch.manual_seed(0)
    return Tied()


def assert_equal(model: nn.Module, other: nn.Module) -> None:
    for (name, a), (_, b) in zip(
        [*model.named_parameters(), *model.named_buffers()],
        [*other.named_parameters(), *other.named_buffers()],
        strict=True,
    ):
        assert torch.equal(a, b), name
        assert a.requires_grad == b.requires_grad
        assert type(a) is type(b)


@pytest.mark.parametrize("verify", ["first", "while"])
def test_all_of_it_is_filled_in_place(verify: str, kept: Path) -> None:
    model = on_meta()
    before = dict(model.named_parameters())
    report = holdtrue.open(kept).restore(model=model, verify=verify)  # type: ignore[arg-type]
    assert report.ok
    assert_equal(model, saved())
    assert all(before[name] is now for name, now in model.named_parameters())
    assert model.head.weight is model.embed.weight
    assert model.kept_beside[0] is model.large.bias
    tokens = torch.arange(5).view(5, 1)
    assert torch.equal(model.eval()(tokens[:, 0]), saved().eval()(tokens[:, 0]))


def test_an_optimizer_that_was_made_on_meta_trains_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    step(model, optimizer)
    holdtrue.save(tmp_path / "kept", model=model, optimizer=optimizer)
    with torch.device("meta"):
        there = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    other = torch.optim.AdamW(there.parameters(), lr=0.1)
    assert holdtrue.open(tmp_path / "kept").restore(model=there, optimizer=other).ok
    for _ in range(2):
        step(model, optimizer)
        step(there, other)
    assert_equal(there, model)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.ones(4, 3)).square().sum().backward()
    optimizer.step()


def flipped(kept: Path, into: Path) -> Path:
    shutil.copytree(kept, into)
    data = bytearray((into / "model.safetensors").read_bytes())
    data[-9] ^= 1
    (into / "model.safetensors").write_bytes(data)
    return into


@pytest.mark.parametrize("verify", ["first", "while"])
def test_after_damage_it_is_on_meta_again(verify: str, kept: Path, tmp_path: Path) -> None:
    model = on_meta()
    before = dict(model.named_parameters())
    with pytest.raises(holdtrue.DamageError) as caught:
        holdtrue.open(flipped(kept, tmp_path / "bad")).restore(model=model, verify=verify)  # type: ignore[arg-type]
    assert {f.code for f in caught.value.report.errors} == {"digest-mismatch"}
    assert all_on_meta(model)
    assert all(before[name] is now for name, now in model.named_parameters())
    assert holdtrue.open(kept).restore(model=model).ok
    assert_equal(model, saved())


def test_what_does_not_fit_leaves_it_on_meta(kept: Path) -> None:
    with torch.device("meta"):
        model = Tied()
        model.more = nn.Linear(2, 2)
    with pytest.raises(holdtrue.RestoreError, match="missing-keys"):
        holdtrue.open(kept).restore(model=model)
    assert all_on_meta(model)


def test_only_what_is_asked_for_gets_memory(kept: Path) -> None:
    model = on_meta()
    assert holdtrue.open(kept).restore(model=model, only="large.*").ok
    assert torch.equal(model.large.weight, saved().large.weight)
    assert model.rnn.weight_hh_l0.is_meta
    assert model.embed.weight.is_meta


def test_what_has_memory_stays_as_it_is_where_the_rest_is_damaged(
    kept: Path, tmp_path: Path
) -> None:
    model = on_meta()
    model.norm = nn.BatchNorm1d(6)
    with torch.no_grad():
        model.norm.weight.fill_(7)
    with pytest.raises(holdtrue.DamageError):
        holdtrue.open(flipped(kept, tmp_path / "bad")).restore(model=model)
    assert torch.equal(model.norm.weight, torch.full((6,), 7.0))
    assert model.embed.weight.is_meta


@pytest.mark.parametrize("holder", ["view", "weak reference"])
def test_what_cannot_get_memory_is_said_and_left(holder: str, kept: Path) -> None:
    model = on_meta()
    held = weakref.ref(model.large.weight) if holder != "view" else model.large.weight.view(-1)
    with pytest.raises(holdtrue.RestoreError, match="target-on-meta"):
        holdtrue.open(kept).restore(model=model)
    assert all_on_meta(model)
    del held


def test_a_dtype_of_its_own_is_kept(kept: Path) -> None:
    model = on_meta().bfloat16()
    with pytest.raises(holdtrue.RestoreError, match="dtype"):
        holdtrue.open(kept).restore(model=model)
    assert all_on_meta(model)
    holdtrue.open(kept).restore(model=model, allow="dtype-narrowed")
    assert model.large.weight.dtype == torch.bfloat16


def test_files_of_others_too(tmp_path: Path) -> None:
    torch.save(saved().state_dict(), tmp_path / "model.pt")
    model = on_meta()
    model.scale = torch.ones(6)
    holdtrue.open(tmp_path / "model.pt").restore(model=model)
    assert torch.equal(model.large.weight, saved().large.weight)
