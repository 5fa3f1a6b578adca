"""Training that is killed at random moments and resumed, over and over, until it has ended.

Started as a program with a folder, a number of steps and a seed; prints what happened as JSON. It
loads torch once and forks each training process, so that a life costs no more than what it trains.
"""

import hashlib
import json
import logging
import os
import random
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import holdtrue
from holdtrue.limits import override
from holdtrue.storage.locating import steps as published

Parts = dict[str, Any]
Step = Callable[[], Tensor]  # trains one step, gives its loss
BEFORE_FIRST = 0.15  # the share of kills that come before the first save, while it is restored


def mlp() -> tuple[Parts, Step]:
    """Dropout, AdamW, a scheduler."""
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=10_000)

    def step() -> Tensor:
        loss = model(torch.randn(8, 16)).square().mean()
        descend(loss, optimizer)
        scheduler.step()
        return loss

    return {"model": model, "optimizer": optimizer, "scheduler": scheduler}, step


def convolutions() -> tuple[Parts, Step]:
    """BatchNorm's running statistics, and momentum."""
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)

    def step() -> Tensor:
        target = torch.randint(10, (8,))
        loss = nn.functional.cross_entropy(model(torch.randn(8, 1, 8, 8)), target)
        descend(loss, optimizer)
        return loss

    return {"model": model, "optimizer": optimizer}, step


class Adapted(nn.Module):
    """A frozen transformer with a small trained addition, as in LoRA."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.backbone.requires_grad_(False)
        self.down, self.up = nn.Linear(32, 2, bias=False), nn.Linear(2, 32, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.backbone(x) + self.up(self.down(x)))


def adapters() -> tuple[Parts, Step]:
    """Mostly frozen: the files of what is frozen are linked from checkpoint to checkpoint."""
    model = Adapted()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)

    def step() -> Tensor:
        loss = model(torch.randn(4, 6, 32)).square().mean()
        descend(loss, optimizer)
        return loss

    return {"model": model, "optimizer": optimizer}, step


class Speller(nn.Module):
    """Predicts the next letter; the embedding is also the output's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(30, 24)
        self.memory = nn.LSTM(24, 24, num_layers=2, dropout=0.2, batch_first=True)
        self.out = nn.Linear(24, 30)
        self.out.weight = self.letters.weight

    def forward(self, text: Tensor) -> Tensor:
        return torch.as_tensor(self.out(self.memory(self.letters(text))[0]))


def tied() -> tuple[Parts, Step]:
    """An LSTM with tied weights."""
    model = Speller()
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3, momentum=0.5)

    def step() -> Tensor:
        text = torch.randint(30, (4, 9))
        guess = model(text[:, :-1]).flatten(0, 1)
        loss = nn.functional.cross_entropy(guess, text[:, 1:].flatten())
        descend(loss, optimizer)
        return loss

    return {"model": model, "optimizer": optimizer}, step


def rivals() -> tuple[Parts, Step]:
    """A GAN: two models, two optimizers."""
    generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 8))
    critic = nn.Sequential(nn.Linear(8, 32), nn.LeakyReLU(), nn.Dropout(0.2), nn.Linear(32, 1))
    first = torch.optim.Adam(generator.parameters(), betas=(0.5, 0.9))
    second = torch.optim.NAdam(critic.parameters())

    def step() -> Tensor:
        fake = generator(torch.randn(8, 4))
        doubt = critic(fake.detach()).mean() - critic(torch.randn(8, 8)).mean()
        descend(doubt, second)
        loss = -critic(fake).mean()
        descend(loss, first)
        return loss + doubt

    parts = {"generator": generator, "critic": critic}
    return {**parts, "generator_optimizer": first, "critic_optimizer": second}, step


KINDS = {f.__name__: f for f in (mlp, convolutions, adapters, tied, rivals)}


def descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def train(kind: str, place: Path, steps: int, saving: int) -> None:
    """From wherever the run is to the end; a save each step, told to the descriptor `saving`."""
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(11)
    parts, step = KINDS[kind]()
    keep = holdtrue.Keep(last=2, best=1, by="loss")
    # What is frozen here is small, and has a file of its own all the same.
    with (place / "losses").open("a") as log, override(frozen_bytes=1):
        run = holdtrue.Run(place / "run", keep=keep, **parts)
        for number in range(run.resume(), steps):
            loss = step().item()
            log.write(f"{number} {loss.hex()}\n")
            log.flush()
            os.write(saving, b"s")
            run.save(number + 1, metrics={"loss": loss})
        run.close()
    (place / "state").write_text(digest(parts))


def digest(parts: Parts) -> str:
    """Of every live tensor and number of the final state, without help from what is tested."""
    said = hashlib.sha256()
    for name, part in sorted(parts.items()):
        for path, value in leaves(part.state_dict(), name):
            raw = value.numpy().tobytes() if isinstance(value, Tensor) else repr(value).encode()
            said.update(path.encode() + b"\0" + raw)
    said.update(torch.get_rng_state().numpy().tobytes())
    return said.hexdigest()


def leaves(value: Any, path: str) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            yield from leaves(item, f"{path}/{key}")
    else:
        yield path, value


def born(kind: str, place: Path, steps: int) -> tuple[int, int]:
    """A training process, and where it tells of its saves."""
    told, saving = os.pipe()
    pid = os.fork()
    if pid:
        os.close(saving)
        return pid, told
    status = 1
    try:
        train(kind, place, steps, saving)
        status = 0
    except BaseException:
        logging.exception("training failed")
    finally:
        os._exit(status)


def wait_for_saves(told: int, number: int) -> bool:
    """True once that many saves were begun; False where the training ended before."""
    for _ in range(number):
        select.select([told], [], [], 120)
        if not os.read(told, 1):
            return False
    return True


def ended(pid: int, told: int) -> int:
    os.close(told)
    return os.waitpid(pid, 0)[1]


def live_and_die(kind: str, place: Path, steps: int, chance: random.Random) -> Counter[str]:
    """Kill and start again until the training is through; after each kill, look at what is left."""
    counts: Counter[str] = Counter()
    before: set[int] = set()
    while True:
        pid, told = born(kind, place, steps)
        if chance.random() < BEFORE_FIRST:
            time.sleep(chance.uniform(0, 0.1))
        elif not wait_for_saves(told, chance.randint(1, 10)):
            if ended(pid, told) != 0:
                raise RuntimeError(f"{kind}: a training process failed")
            return counts + inspect(place / "run", before)
        else:
            time.sleep(chance.uniform(0, 0.03))
        os.kill(pid, signal.SIGKILL)
        status = ended(pid, told)
        if status == 0:  # it was through just then
            return counts + inspect(place / "run", before)
        if not os.WIFSIGNALED(status):
            raise RuntimeError(f"{kind}: a training process failed")
        counts["kills"] += 1
        counts += inspect(place / "run", before)
        before = set(published(place / "run"))


def inspect(run: Path, before: set[int]) -> Counter[str]:
    """What a kill left behind, after one that left those before. Raises where it is not what it
    has to be."""
    counts: Counter[str] = Counter()
    left = os.listdir(run / ".staging") if (run / ".staging").is_dir() else []
    if len(left) > 1:
        raise RuntimeError(f"leftovers pile up: {left}")
    counts["in the middle of a save"] += sum(name.startswith("step-") for name in left)
    counts["in the middle of a removal"] += sum(name.startswith("removed-") for name in left)
    found = published(run) if run.is_dir() else {}
    # Two last ones, the best, and one that was not pruned yet; another one for each process before
    # that was also killed between its first save and what that would have pruned.
    saves = max(found, default=0) - max(before, default=0)
    if len(found) > (4 if saves > 1 else max(4, len(before) + saves)):
        raise RuntimeError(f"after {sorted(before)}, checkpoints pile up: {sorted(found)}")
    for step, path in found.items():
        report = holdtrue.verify(path)
        if report.findings:
            raise RuntimeError(f"step {step} does not verify: {report}")
        counts["checkpoints verified"] += 1
        cost = holdtrue.open(path).manifest.cost
        counts["files linked"] += cost.linked if cost else 0
    return counts


def losses(place: Path) -> dict[str, set[str]]:
    """Step → its losses; one that was trained again after a kill must give the same again."""
    found: dict[str, set[str]] = {}
    for line in (place / "losses").read_text().splitlines():
        number, _, loss = line.partition(" ")
        found.setdefault(number, set()).add(loss)
    return found


def differences(one: Path, other: Path) -> list[str]:
    """What of the two trainings is not the same, bit for bit."""
    a, b = losses(one), losses(other)
    found = [f"loss of step {n}" for n in sorted(a.keys() | b.keys()) if a.get(n) != b.get(n)]
    if (one / "state").read_text() != (other / "state").read_text():
        found.append("the live state at the end")
    kept, got = holdtrue.open(one / "run"), holdtrue.open(other / "run")
    if kept.step != got.step:
        found.append(f"the last step: {kept.step} and {got.step}")
    names = kept.tensors.keys() | got.tensors.keys()
    found += [n for n in sorted(names) if bits(kept, n) != bits(got, n)]
    parts, others = kept.manifest.parts, got.manifest.parts
    return found + [n for n in parts.keys() | others.keys() if parts.get(n) != others.get(n)]


def bits(checkpoint: holdtrue.Checkpoint, name: str) -> bytes | None:
    return checkpoint.tensors[name].numpy().tobytes() if name in checkpoint.tensors else None


def main(folder: Path, steps: int, seed: int) -> None:
    torch.set_num_threads(1)
    logging.getLogger("holdtrue").setLevel(logging.ERROR)  # each life takes a dead one's lock over
    for kind, build in KINDS.items():  # what is imported on first use is imported once, here
        holdtrue.save(folder / "warm" / kind, **build()[0])
    for kind in KINDS:
        one, other = folder / kind / "undisturbed", folder / kind / "killed"
        one.mkdir(parents=True)
        other.mkdir()
        pid, told = born(kind, one, steps)
        wait_for_saves(told, steps + 1)
        if ended(pid, told) != 0:
            raise RuntimeError(f"{kind}: the undisturbed training failed")
        counts = live_and_die(kind, other, steps, random.Random(f"{seed} {kind}"))
        counts["saves begun"] = len((other / "losses").read_text().splitlines())
        names = [p.name for p in (other / "run").iterdir() if not p.name.startswith("step-")]
        # One that was killed in its last breath leaves its lock, for the next writer to take over.
        lasting = [name for name in names if name != ".lock"]
        said = {"different": differences(one, other), "left": lasting, **counts}
        print(json.dumps({"kind": kind, **said}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
