"""Wrapped models are kept under their own names, and go into wrapped or plain ones alike."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import holdtrue

ROOT = Path(__file__).resolve().parents[2]
Wrap = Callable[[nn.Module], nn.Module]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


NAMES = set(Net().state_dict())


def compiled(module: nn.Module) -> nn.Module:
    return torch.compile(module, backend="eager")


def inner(wrap: Wrap) -> Wrap:
    def apply(model: nn.Module) -> nn.Module:
        model.body = wrap(model.body)
        return model

    return apply


def leaf(wrap: Wrap) -> Wrap:
    def apply(model: nn.Module) -> nn.Module:
        model.body[0] = wrap(model.body[0])
        return model

    return apply


WRAPS: dict[str, Wrap] = {
    "plain": lambda m: m,
    "DataParallel": nn.DataParallel,
    "compiled": compiled,
    "compiled DataParallel": lambda m: compiled(nn.DataParallel(m)),
    "DataParallel of compiled": lambda m: nn.DataParallel(compiled(m)),
    "checkpointed": checkpoint_wrapper,
    "body DataParallel": inner(nn.DataParallel),
    "body compiled": inner(compiled),
    "body checkpointed": inner(checkpoint_wrapper),
    "layer compiled and checkpointed": leaf(lambda m: compiled(checkpoint_wrapper(m))),
    "body compiled, all DataParallel": lambda m: nn.DataParallel(inner(compiled)(m)),
}


def net(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = Net()
    model(torch.randn(8, 4))
    return model


def tensors(model: nn.Module) -> list[torch.Tensor]:
    return [t.detach().clone() for t in (*model.parameters(), *model.buffers())]


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


@pytest.mark.parametrize("into", WRAPS)
@pytest.mark.parametrize("saved", WRAPS)
def test_any_wrapping_restores_into_any_other(saved: str, into: str, tmp_path: Path) -> None:
    model, target = WRAPS[saved](net(1)), WRAPS[into](net(2))
    holdtrue.save(tmp_path / "kept", model=model)
    checkpoint = holdtrue.open(tmp_path / "kept")

    assert set(checkpoint["model"]) == NAMES
    report = checkpoint.restore(model=target)

    assert report.ok
    assert [f.code for f in report.findings] == ["parts-left"]
    assert equal(model, target)


@pytest.mark.parametrize("wrap", WRAPS)
def test_optimizer_state_follows_through_the_wrapping(wrap: str, tmp_path: Path) -> None:
    model = WRAPS[wrap](net(1))
    optimizer = torch.optim.Adam(model.parameters())
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    holdtrue.save(tmp_path / "kept", model=model, optimizer=optimizer)
    plain = net(2)
    other = torch.optim.Adam(plain.parameters())

    holdtrue.open(tmp_path / "kept").restore(model=plain, optimizer=other)

    names = holdtrue.open(tmp_path / "kept")["optimizer"]["state"]
    assert set(names) == {f"model/{n}" for n, _ in plain.named_parameters()}
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(optimizer.state[p]["exp_avg_sq"], other.state[q]["exp_avg_sq"])


def test_training_flags_go_through_wrappers_that_have_their_own(tmp_path: Path) -> None:
    model = nn.DataParallel(net(1))
    model.eval()
    model.module.head.train()
    holdtrue.save(tmp_path / "kept", model=model)
    target = compiled(nn.DataParallel(net(2)))

    holdtrue.open(tmp_path / "kept").restore(model=target)

    inside = target._orig_mod.module
    here = {name: m.training for name, m in inside.named_modules()}
    assert here == {name: name == "head" for name in here}
    assert not target.training
    assert not target._orig_mod.training


def test_an_averaged_model_keeps_its_own_prefix(tmp_path: Path) -> None:
    model = net(1)
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    holdtrue.save(tmp_path / "kept", ema=averaged)
    other = AveragedModel(net(2))

    holdtrue.open(tmp_path / "kept").restore(ema=other)

    assert set(holdtrue.open(tmp_path / "kept")["ema"]) == set(averaged.state_dict())
    assert "module.head.weight" in holdtrue.open(tmp_path / "kept")["ema"]
    assert equal(averaged, other)
    assert other.n_averaged.item() == 1


def test_an_averaged_model_of_a_wrapped_one_has_clean_names_inside(tmp_path: Path) -> None:
    averaged = AveragedModel(nn.DataParallel(net(1)))
    holdtrue.save(tmp_path / "kept", ema=averaged)
    other = AveragedModel(net(2))

    holdtrue.open(tmp_path / "kept").restore(ema=other)

    assert equal(averaged, other)


def test_a_user_module_called_module_keeps_its_name(tmp_path: Path) -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    holdtrue.save(tmp_path / "kept", model=Holder())

    assert set(holdtrue.open(tmp_path / "kept")["model"]) == {"module.weight", "module.bias"}


DISTRIBUTED = """
    import sys, torch, torch.distributed as dist, holdtrue
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    rank, world, place = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=world)

    def net(seed):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))

    def trained(model):
        optimizer = torch.optim.AdamW(model.parameters())
        for i in range(2):
            torch.manual_seed(10 * rank + i)
            optimizer.zero_grad()
            model(torch.randn(6, 4)).square().sum().backward()
            optimizer.step()
        return optimizer

    model = DistributedDataParallel(net(1))
    optimizer = trained(model)
    path = f"{place}/kept"
    if rank == 0:
        holdtrue.save(path, model=model, optimizer=optimizer)
    dist.barrier()
    assert set(holdtrue.open(path)["model"]) == set(net(0).state_dict())

    def same(a, b):
        return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))

    again = DistributedDataParallel(net(2))
    other = trained(again)
    holdtrue.open(path).restore(model=again, optimizer=other, rng=False)
    assert same(model, again)
    plain = net(3)
    third = torch.optim.AdamW(plain.parameters())
    holdtrue.open(path).restore(model=plain, optimizer=third, rng=False)
    assert same(model, plain)
    holdtrue.save(f"{place}/plain-{rank}", model=plain)
    wrapped = DistributedDataParallel(net(4))
    holdtrue.open(f"{place}/plain-{rank}").restore(model=wrapped)
    assert same(model, wrapped)

    # Training goes on alike on every rank: gradients are still exchanged, states were restored.
    for m, o in ((model, optimizer), (again, other)):
        torch.manual_seed(77 + rank)
        o.zero_grad()
        m(torch.randn(6, 4)).square().sum().backward()
        o.step()
    assert same(model, again)
    dist.barrier()
    dist.destroy_process_group()
    print("rank", rank, "done")
"""


@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_distributed_data_parallel_in_real_processes(world: int, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(DISTRIBUTED))
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(world), str(tmp_path)],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        said = [process.communicate(timeout=90)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0] * world, "\n".join(said)
