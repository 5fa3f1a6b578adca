"""Files with wrong bytes and wrong structures: findings, never a traceback, no rule that fails."""

import collections
import copy
import pickle
import random

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim import lr_scheduler

import holdtrue

ROUNDS = 12
MANY = 400


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.last = nn.Linear(6, 3)


def training():
    """A model, its optimizer and its schedule, one step on."""
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = lr_scheduler.StepLR(optimizer, 3)
    model.last(model.norm(model.first(torch.randn(5, 4)))).sum().backward()
    optimizer.step()
    scheduler.step()
    return {"model": model, "optimizer": optimizer, "scheduler": scheduler}


def states(live):
    return {name: copy.deepcopy(one.state_dict()) for name, one in live.items()} | {"epoch": 3}


def lightning(live):
    state = states(live)
    return {
        "epoch": 1,
        "global_step": 4,
        "pytorch-lightning_version": "2.1",
        "state_dict": state["model"],
        "optimizer_states": [state["optimizer"]],
        "lr_schedulers": [state["scheduler"]],
        "loops": {"fit_loop": {}},
        "callbacks": {"ModelCheckpoint": {"best_model_path": "a"}},
    }


WRITERS = {
    "zip": lambda live, path: torch.save(states(live), path),
    "legacy": lambda live, path: torch.save(
        states(live), path, _use_new_zipfile_serialization=False
    ),
    "lightning": lambda live, path: torch.save(lightning(live), path),
    "whole": lambda live, path: torch.save(nn.Sequential(nn.Linear(3, 3)), path),
    "safetensors": lambda live, path: save_file(live["model"].state_dict(), path),
    "torchscript": lambda live, path: torch.jit.script(nn.Sequential(nn.Linear(3, 3))).save(path),
    "npz": lambda live, path: np.savez(path, a=np.ones(3), b=np.zeros((2, 2))),
    "pickle": lambda live, path: path.write_bytes(pickle.dumps({"a": [1, {"b": np.ones(3)}]})),
}
WORDS = (b"weight", b"exp_avg", b"betas", b"params", b"step", b"torch", b"state", b"lr")


def mutated(data, rng):
    data = bytearray(data)
    at = rng.randrange(len(data))
    match rng.choice(["bytes", "bytes", "cut", "gone", "more", "zeros", "words"]):
        case "bytes":
            for _ in range(rng.choice([1, 2, 4, 16])):
                reach = min(len(data), rng.choice([64, 1200, len(data)]))
                data[rng.randrange(reach)] = rng.choice(
                    [0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)]
                )
        case "cut":
            del data[at:]
        case "gone":
            del data[at : at + rng.randrange(1, 200)]
        case "more":
            data += rng.randbytes(rng.randrange(1, 300))
        case "zeros":
            end = min(len(data), at + rng.randrange(1, 2000))
            data[at:end] = bytes(end - at)
        case "words":
            word = rng.choice(WORDS)
            data = data.replace(word, word[::-1], rng.choice([1, 100]))
    return bytes(data)


def odd(rng):
    """A value that may stand where another is expected."""
    return rng.choice(
        [
            None, True, -1, 10**30, float("nan"), float("inf"), "", "x" * 300, b"\xff", (), [], {},
            {1: 2, "1": 3}, [[[]]], 1j, torch.tensor(float("nan")), torch.empty(0),
            torch.ones(2, 3).t(), torch.ones(3, dtype=torch.bool), torch.ones(6, 4).half(),
            torch.ones(3).to(torch.float8_e4m3fn), torch.empty(2, device="meta"), np.ones(3),
            torch.sparse_coo_tensor([[0], [1]], [2.0], (2, 2)), np.float64(3), torch.float16,
            collections.OrderedDict(a=1), nn.Linear(2, 2), nn.Parameter(torch.ones(2)), range(3),
        ]
    )  # fmt: skip


def containers(tree, depth=0):
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    if not isinstance(tree, dict | list) or not tree or depth > 8:
        return []
    return [tree, *(found for part in inner for found in containers(part, depth + 1))]


def disarrange(tree, rng):
    for _ in range(rng.choice([1, 1, 2, 3])):
        held = containers(tree)
        if not held:
            return
        one = rng.choice(held)
        key = rng.choice(list(one)) if isinstance(one, dict) else rng.randrange(len(one))
        match rng.choice(["value", "value", "gone", "name", "shared"]):
            case "value":
                one[key] = odd(rng)
            case "gone":
                del one[key]
            case "name" if isinstance(one, dict):
                other = rng.choice(
                    [str(key), f"module.{key}", 7, -3, (1,), None, "state", "params"]
                )
                one[other] = one[key]
            case _:
                one[key] = rng.choice(held)  # shared, or within itself


def told(path, rng):
    """Diagnose with some targets; what is refused is refused by a finding."""
    live = training()
    names = rng.choice(
        [(), ("model",), ("model", "optimizer"), ("model", "optimizer", "scheduler")]
    )
    try:
        report = holdtrue.diagnose(path, deep=rng.random() < 0.5, **{n: live[n] for n in names})
    except holdtrue.HoldtrueError as error:
        report = error.report
    assert str(report)
    failed = [finding for finding in report.findings if finding.code == "rule-failed"]
    assert not failed, failed[0]


def wrong_bytes(kind, place, seed, rounds):
    rng = random.Random(seed)
    path = place / f"good-{kind}"
    WRITERS[kind](training(), path)
    path = path if path.exists() else path.with_name(f"good-{kind}.npz")
    good = path.read_bytes()
    for _ in range(rounds):
        (place / "bad").write_bytes(mutated(good, rng))
        told(place / "bad", rng)


def wrong_structure(place, seed, rounds):
    rng = random.Random(seed)
    for _ in range(rounds):
        live = training()
        tree = rng.choice([states, lightning])(live)
        disarrange(tree, rng)
        torch.save(tree, place / "bad", _use_new_zipfile_serialization=rng.random() < 0.8)
        told(place / "bad", rng)


@pytest.mark.parametrize("kind", WRITERS)
def test_wrong_bytes(kind, tmp_path, figure):
    wrong_bytes(kind, tmp_path, 1, ROUNDS)
    figure("damaged files diagnosed", ROUNDS)


def test_wrong_structure(tmp_path, figure):
    wrong_structure(tmp_path, 1, ROUNDS)
    figure("odd files diagnosed", ROUNDS)


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("seed", range(10, 14))
def test_wrong_bytes_many(kind, seed, tmp_path, figure):
    wrong_bytes(kind, tmp_path, seed, MANY)
    figure("damaged files diagnosed", MANY)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 18))
def test_wrong_structure_many(seed, tmp_path, figure):
    wrong_structure(tmp_path, seed, MANY)
    figure("odd files diagnosed", MANY)
