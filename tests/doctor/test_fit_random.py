"""Random models under random names: each is recovered or refused, and never silently wrong."""

import random

import pytest
import torch
from fitting import codes, command_of, fill, run, same, saved
from torch import nn

import holdtrue

_WORDS = ("conv", "norm", "attn", "head", "proj", "up", "down", "mix", "gate", "foo", "bar", "zed")


class Tree(nn.Module):
    """Children in an order and of sizes that a seed decides; with equal shapes among them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        chance = random.Random(seed)
        for index in range(chance.randint(2, 6)):
            width = chance.choice((2, 3, 4))
            made = chance.choice(
                (
                    lambda n=width: nn.Linear(n, n),
                    lambda n=width: nn.Linear(n, n + 1, bias=False),
                    lambda n=width: nn.LayerNorm(n),
                    lambda n=width: nn.BatchNorm1d(n),
                    lambda n=width: nn.Sequential(nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 2)),
                )
            )
            setattr(self, f"{chance.choice(_WORDS)}{index}", made())


def renamed(model: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Every child under another name, each name of its own; sometimes in another order."""
    chance = random.Random(seed * 7 + 1)
    words = chance.sample([f"{w}{i}" for w in _WORDS for i in "xyz"], len(list(model.children())))
    new = {name: words[i] for i, (name, _) in enumerate(model.named_children())}
    if chance.random() < 0.3:  # some of the model's own names, given to other children
        old = list(new)
        shifted = old[1:] + old[:1]
        new = dict(zip(old, shifted, strict=True))
    items = [
        (".".join((new[n.partition(".")[0]], n.partition(".")[2])), t)
        for n, t in model.state_dict().items()
    ]
    if chance.random() < 0.5:
        chance.shuffle(items)
    return dict(items)


@pytest.mark.parametrize("seed", range(60))
def test_random_names_are_recovered_or_refused(seed, tmp_path):
    model = fill(Tree(seed), seed)
    path = saved(renamed(model, seed), tmp_path)
    target = Tree(seed)
    report = holdtrue.diagnose(path, model=target)
    command = command_of(report)
    if not command:
        assert codes(report, "error") or same(model, model.state_dict())
        return
    sure = min(f.confidence for f in report.findings if f.code == "restore-call")
    done = run(command, target)
    assert done.ok
    if "allow=" not in command and sure != "hint":
        assert same(target, model.state_dict()), command


def test_names_made_to_be_slow_are_left_alone(tmp_path):
    deep = ".".join("1" for _ in range(400))
    state = {f"{deep}.{i}.weight": torch.ones(3, 3) for i in range(40)}
    state |= {"*" * 40 + str(i): torch.ones(3) for i in range(40)}
    report = holdtrue.diagnose(saved(state, tmp_path), model=nn.Linear(3, 3))
    assert codes(report, "error")
