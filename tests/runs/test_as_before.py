"""A save that uses what the one before found out writes what a save without it writes."""

import random
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

import holdtrue
from holdtrue.limits import override


class Block(nn.Module):
    scale = 2.0

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.register_buffer("mask", torch.ones(width), persistent=False)
        self.settings = {"width": width, "rate": 0.5}
        self.power = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.inner(x)) * self.scale * self.power


Parts = dict[str, Any]


def training() -> Parts:
    torch.manual_seed(0)
    model = nn.Sequential(Block(), nn.Dropout(0.1), Block(), nn.Conv1d(2, 2, 3))
    parts = [{"params": model[0].parameters()}, {"params": model[2].parameters(), "lr": 0.5}]
    optimizer = torch.optim.AdamW(parts, 0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    made = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "extra": {"n": 1}}
    advance(made)
    return made


def advance(parts: Parts) -> None:
    """A step of training, without a random number."""
    for group in parts["optimizer"].param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad:
                parameter.grad = parameter.detach() * 0.1
    parts["optimizer"].step()
    parts["scheduler"].step()


def assert_same(kept: Path, anew: Path) -> None:
    """Every byte but those that say when, and what the save cost."""
    ours, theirs = ({f.relative_to(p): f for p_ in [p] for f in p_.rglob("*") if f.is_file()}
                    for p in (kept, anew))  # fmt: skip
    assert ours.keys() == theirs.keys()
    for name, file in ours.items():
        if name.name != "manifest.json":
            assert file.read_bytes() == theirs[name].read_bytes(), name
    manifests = []
    for folder in (kept, anew):
        manifest = msgspec.json.decode((folder / "manifest.json").read_bytes())
        for key in ("created", "cost", "xxh3_128", "step", "environment"):
            manifest.pop(key, None)
        manifests.append(msgspec.json.encode(manifest))
    assert manifests[0] == manifests[1]


class Saves:
    """A run whose every save is compared with one that knows nothing of the saves before."""

    def __init__(self, folder: Path, parts: Parts) -> None:
        self.folder, self.parts, self.step = folder, parts, 0
        self.run = holdtrue.Run(folder / "run", **parts)

    def compare(self, *, wait: bool = False) -> frozenset[str]:
        """The parts that the next save may use again."""
        self.step += 1
        saving = self.run.save(self.step, wait=wait)
        saving.wait()
        anew = self.folder / f"anew-{self.step}"
        holdtrue.save(anew, **self.parts)
        assert_same(saving.path, anew)
        before = self.run._before
        return frozenset(before.captured.parts) if before is not None else frozenset()

    def used_again(self) -> bool:
        """Whether the last save took over all that it could."""
        before = self.run._before
        self.compare()
        return before is not None and self.run._before is before


@pytest.fixture
def saves(tmp_path: Path) -> Saves:
    return Saves(tmp_path, training())


def test_training_on_changes_nothing_that_is_described(saves: Saves) -> None:
    assert saves.compare() == {"model", "optimizer"}
    for _ in range(3):
        advance(saves.parts)
        saves.parts["extra"]["n"] += 1
        assert saves.used_again()
    saves.compare(wait=True)


def other_data(p: Parts) -> None:
    weight = p["model"][0].inner.weight
    weight.data = weight.data + 1


def other_numbers_in_the_same_memory(p: Parts) -> None:
    mask = p["model"][0].mask
    mask.data = mask.data.view(torch.int32)


def other_strides_in_the_same_memory(p: Parts) -> None:
    weight = p["model"][0].inner.weight
    weight.data = weight.data.t()


def negated_in_the_same_memory(p: Parts) -> None:
    weight = p["model"][0].inner.weight
    weight.data = torch._neg_view(weight.data)


def assigned(p: Parts) -> None:
    state = {name: value.clone() + 1 for name, value in p["model"].state_dict().items()}
    p["model"].load_state_dict(state, assign=True)


def parameter_added(p: Parts) -> None:
    p["model"][1].register_parameter("fresh", nn.Parameter(torch.ones(3)))


def parameter_removed(p: Parts) -> None:
    del p["model"][3].bias


def parameter_set_to_none(p: Parts) -> None:
    p["model"][3].bias = None


def parameter_replaced(p: Parts) -> None:
    p["model"][2].inner.weight = nn.Parameter(torch.zeros(8, 8))


def tied(p: Parts) -> None:
    p["model"][2].inner.weight = p["model"][0].inner.weight


def frozen(p: Parts) -> None:
    p["model"][0].inner.weight.requires_grad_(False)


def half(p: Parts) -> None:
    p["model"].half()


def module_replaced(p: Parts) -> None:
    p["model"][3] = nn.Linear(2, 2)


def module_added(p: Parts) -> None:
    p["model"].append(nn.Linear(2, 2))


def module_renamed(p: Parts) -> None:
    own = p["model"]._modules
    own["last"] = own.pop("3")


def buffer_exchanged(p: Parts) -> None:
    p["model"][0].norm.running_mean = torch.full((8,), 7.0)


def buffer_made_persistent(p: Parts) -> None:
    p["model"][0]._non_persistent_buffers_set.clear()


def buffer_resized(p: Parts) -> None:
    p["model"][0].mask.resize_(4)


def evaluating(p: Parts) -> None:
    p["model"][2].eval()


def attribute_of_torch(p: Parts) -> None:
    p["model"][1].p = 0.25


def attribute_of_the_user(p: Parts) -> None:
    p["model"][2].power = True  # equal to what it was, and another value


def attribute_inside(p: Parts) -> None:
    p["model"][0].settings["rate"] = 0.75


def class_constant(p: Parts) -> None:
    Block.scale += 1.0


def hooked(p: Parts) -> None:
    p["model"][0].register_forward_hook(print)


def optimizer_state_replaced(p: Parts) -> None:
    state = p["optimizer"].state[p["model"][0].inner.weight]
    state["exp_avg"] = state["exp_avg"] * 2


def optimizer_state_gone(p: Parts) -> None:
    p["optimizer"].state.pop(p["model"][0].inner.weight)


def optimizer_state_more(p: Parts) -> None:
    p["optimizer"].state[p["model"][0].inner.weight]["more"] = torch.ones(2)


def optimizer_state_plain(p: Parts) -> None:
    p["optimizer"].state[p["model"][0].inner.weight]["more"] = 3


def optimizer_loaded(p: Parts) -> None:
    p["optimizer"].load_state_dict(p["optimizer"].state_dict())


def group_added(p: Parts) -> None:
    p["optimizer"].add_param_group({"params": p["model"][3].parameters()})


def group_order(p: Parts) -> None:
    p["optimizer"].param_groups[0]["params"].reverse()


def learning_rate(p: Parts) -> None:
    p["optimizer"].param_groups[1]["lr"] = 1e-5


def learning_rate_as_tensor(p: Parts) -> None:
    p["optimizer"].param_groups[1]["lr"] = torch.tensor(1e-5)


def overlapping(p: Parts) -> None:
    whole = torch.arange(12.0)
    p["model"][0].mask.data = whole[:8]
    p["model"][2].mask.data = whole[4:]


UNSEEN = {learning_rate, class_constant, attribute_inside}  # captured anew at every save
CHANGES: list[Callable[[Parts], None]] = [
    other_data, other_numbers_in_the_same_memory, other_strides_in_the_same_memory,
    negated_in_the_same_memory, assigned, parameter_added, parameter_removed,
    parameter_set_to_none, parameter_replaced, tied, frozen, half, module_replaced, module_added,
    module_renamed, buffer_exchanged, buffer_made_persistent, buffer_resized, evaluating,
    attribute_of_torch, attribute_of_the_user, attribute_inside, class_constant, hooked,
    optimizer_state_replaced, optimizer_state_gone, optimizer_state_more, optimizer_state_plain,
    optimizer_loaded, group_added, group_order, learning_rate, learning_rate_as_tensor, overlapping,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_every_change_is_seen(
    saves: Saves, change: Callable[[Parts], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Block, "scale", Block.scale)  # put back afterwards
    saves.compare()
    assert saves.used_again()
    change(saves.parts)
    saves.compare()  # of the changed state, all bytes
    saves.compare()  # and once more, from what this one remembered


@pytest.mark.parametrize("seed", range(4))
def test_any_order_of_changes_is_seen(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    saves = Saves(tmp_path, training())
    scale = Block.scale
    try:
        for _ in range(12):
            saves.compare(wait=draw.random() < 0.2)
            for change in draw.sample(CHANGES, draw.choice([0, 1, 1, 2])):
                try:
                    change(saves.parts)
                except (AttributeError, KeyError, ValueError, TypeError, RuntimeError):
                    continue  # what it would change is gone
    finally:
        Block.scale = scale


def test_other_limits_lay_the_files_out_anew(saves: Saves) -> None:
    saves.compare()
    with override(shard_bytes=256):
        saves.compare()


def test_a_replaced_tensor_is_not_held(saves: Saves) -> None:
    saves.compare()
    gone = weakref.ref(saves.parts["model"][0].inner.weight.untyped_storage())
    held = weakref.ref(saves.parts["model"][0].inner.weight)
    saves.run.flush()
    saves.parts["optimizer"].state.clear()
    saves.parts["optimizer"].param_groups.clear()
    saves.parts["model"][0].inner.weight = nn.Parameter(torch.zeros(8, 8))
    assert held() is None
    assert gone() is None


def test_tied_parameters_and_odd_shapes(tmp_path: Path) -> None:
    model = nn.Module()
    model.a = nn.Parameter(torch.randn(3, 4).t())
    model.b = model.a
    model.c = nn.Parameter(torch.randn(2, 1, 3).to(torch.bfloat16))
    model.d = nn.Parameter(torch.tensor(1.5))
    model.e = nn.Parameter(torch.randn(4, dtype=torch.complex64))
    model.register_buffer("f", torch.tensor([True, False]))
    model.register_buffer("g", torch.arange(5)[::2])
    saves = Saves(tmp_path, {"model": model})
    assert saves.compare() == {"model"}
    assert saves.used_again()
    model.e.data = model.e.data.conj()
    saves.compare()
    saves.compare()
