"""Optimizers: after a restore into fresh objects, the next ten steps are the run's own."""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from same import bits, same
from torch import Tensor, nn
from torch.optim import Optimizer

import holdtrue

STEPS = 10
pytestmark = pytest.mark.filterwarnings("ignore")
Make = Callable[[Any], Optimizer]


class Net(nn.Module):
    """Matrices, vectors, a convolution, and a parameter that never gets a gradient."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv1d(1, 4, 3)
        self.norm = nn.BatchNorm1d(4)
        self.mid = nn.Linear(16, 8)
        self.out = nn.Linear(8, 2)
        self.unused = nn.Parameter(torch.rand(3))
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.conv(x))).flatten(1)
        return self.out(torch.relu(self.mid(x)))


class Embedding(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Embedding(20, 4, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.table((x[:, 0] * 3).abs().long() % 20).sum(1)


class Matrices(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.a, self.b = nn.Linear(6, 8, bias=False), nn.Linear(8, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x[:, 0])))


def train(
    model: nn.Module, optimizers: list[Optimizer], start: int, steps: int = STEPS
) -> list[bytes]:
    """Losses and weights after every step; batches depend on the step only."""
    story = []
    parameter = next(model.parameters())
    for step in range(start, start + steps):
        draw = torch.Generator().manual_seed(step)
        x = torch.randn(5, 1, 6, generator=draw).to(parameter.dtype)
        for optimizer in optimizers:

            def closure(optimizer: Optimizer = optimizer) -> Tensor:
                optimizer.zero_grad()
                loss = (model(x) ** 2).mean()
                loss.backward()
                return loss

            if isinstance(optimizer, torch.optim.LBFGS):
                loss = optimizer.step(closure)
            else:
                loss = closure()
                # A differentiable step wants parameters that are no leaves; ours are.
                apart = optimizer.defaults.get("differentiable", False)
                for p in model.parameters() if apart else ():
                    p.requires_grad_(False)
                optimizer.step()
                for p in model.parameters() if apart else ():
                    p.requires_grad_(True)
            story.append(bits(loss))
        story += [bits(p) for p in model.state_dict().values()]
    return story


def settings(name: str) -> dict[str, dict[str, Any]]:
    """Several settings of an optimizer, by a short name."""
    common: dict[str, dict[str, Any]] = {
        "plain": {},
        "decay": {"weight_decay": 0.1},
        "maximize": {"maximize": True, "lr": 1e-4},
        "foreach": {"foreach": True},
        "single": {"foreach": False},
        "differentiable": {"differentiable": True, "foreach": False},
    }
    tensor_lr = {"tensor lr": {"lr": lambda: torch.tensor(0.01), "foreach": False}}
    adam = {"amsgrad": {"amsgrad": True}, "betas": {"betas": (0.5, 0.9)}, "fused": {"fused": True}}
    own: dict[str, dict[str, dict[str, Any]]] = {
        "SGD": {**common, **tensor_lr, "momentum": {"momentum": 0.9}, "fused": {"fused": True},
                "nesterov": {"momentum": 0.9, "nesterov": True},
                "damp": {"momentum": 0.5, "dampening": 0.3}},
        "Adam": {**common, **adam, **tensor_lr,
                 "decoupled": {"decoupled_weight_decay": True, "weight_decay": 0.1}},
        "AdamW": {**common, **adam, **tensor_lr},
        "Adagrad": {**common, "fused": {"fused": True}, "lr decay": {"lr_decay": 0.1}},
        "RMSprop": {**common, "centered": {"centered": True, "momentum": 0.5}},
        "NAdam": {**common, "decoupled": {"decoupled_weight_decay": True, "weight_decay": 0.1}},
        "RAdam": {**common, "decoupled": {"decoupled_weight_decay": True, "weight_decay": 0.1}},
        "Rprop": {k: v for k, v in common.items() if k != "decay"} | {"etas": {"etas": (0.4, 1.3)}},
        "ASGD": {**common, "averaging": {"t0": 3.0, "lambd": 0.01}},
        "Adadelta": {**common, "rho": {"rho": 0.5}},
        "Adamax": {**common, "betas": {"betas": (0.5, 0.9)}},
        "Adafactor": {k: v for k, v in common.items() if k != "differentiable"} | {"d": {"d": 2.0}},
        "SparseAdam": {"plain": {}, "maximize": {"maximize": True}, "betas": {"betas": (0.5, 0.9)}},
        "LBFGS": {"plain": {"lr": 0.1}, "wolfe": {"line_search_fn": "strong_wolfe"},
                  "history": {"history_size": 3, "max_iter": 5, "lr": 0.05}},
        "Muon": {"plain": {}, "no nesterov": {"nesterov": False}, "momentum": {"momentum": 0.5},
                 "match": {"adjust_lr_fn": "match_rms_adamw"}},
    }  # fmt: skip
    return own[name]


NAMES = [
    "SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "NAdam", "RAdam", "Rprop", "ASGD", "Adadelta",
    "Adamax", "Adafactor", "SparseAdam", "LBFGS", "Muon",
]  # fmt: skip
CASES = [(name, setting) for name in NAMES for setting in settings(name)]


def model_for(name: str, seed: int) -> nn.Module:
    if name == "SparseAdam":
        return Embedding(seed)
    return Matrices(seed) if name == "Muon" else Net(seed)


def build(name: str, setting: str, model: nn.Module) -> Optimizer:
    options = {k: v() if callable(v) else v for k, v in settings(name)[setting].items()}
    made: Optimizer = getattr(torch.optim, name)(model.parameters(), **options)
    return made


def test_every_optimizer_of_torch_is_tried() -> None:
    known = {
        n for n, c in vars(torch.optim).items()
        if isinstance(c, type) and issubclass(c, Optimizer) and c is not Optimizer
    }  # fmt: skip
    print(f"optimizers: {len(NAMES)}, {len(CASES)} with their settings")
    assert known == set(NAMES)


@pytest.mark.parametrize(("name", "setting"), CASES)
def test_the_next_ten_steps_are_the_same(tmp_path: Path, name: str, setting: str) -> None:
    model = model_for(name, 1)
    optimizer = build(name, setting, model)
    train(model, [optimizer], 0, 4)
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer)
    expected = train(model, [optimizer], 4)
    for steps_before in (0, 2):
        fresh = model_for(name, 99)
        other = build(name, setting, fresh)
        train(fresh, [other], 50, steps_before)
        held = [id(p) for p in fresh.parameters()]
        holdtrue.open(tmp_path / "c").restore(model=fresh, optimizer=other)
        assert held == [id(p) for p in fresh.parameters()]
        assert train(fresh, [other], 4) == expected, f"after {steps_before} steps of its own"


@pytest.mark.parametrize(
    "name", ["SGD", "Adam", "Adafactor", pytest.param("LBFGS", marks=pytest.mark.slow)]
)
def test_without_the_model_state_goes_by_position(tmp_path: Path, name: str) -> None:
    model = model_for(name, 1)
    optimizer = build(name, "plain", model)
    train(model, [optimizer], 0, 3)
    holdtrue.save(tmp_path / "both", model=model, optimizer=optimizer)
    holdtrue.save(tmp_path / "alone", optimizer=optimizer)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    expected = train(model, [optimizer], 3)
    for place, known in (("both", False), ("alone", False), ("alone", True)):
        fresh = model_for(name, 9)
        fresh.load_state_dict(weights)
        other = build(name, "plain", fresh)
        if known:  # named here, without a name in the file
            holdtrue.save(tmp_path / "model", overwrite=True, fresh=fresh, optimizer=optimizer)
        holdtrue.open(tmp_path / place).restore(optimizer=other)
        assert train(fresh, [other], 3) == expected, place


def test_by_position_another_order_is_refused(tmp_path: Path) -> None:
    model = Net(1)
    optimizer = torch.optim.Adam(model.parameters())
    train(model, [optimizer], 0, 2)
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer)
    fresh = Net(2)
    other = torch.optim.Adam(list(fresh.parameters())[::-1])
    before = snapshot(fresh, other)
    with pytest.raises(holdtrue.RestoreError) as caught:
        holdtrue.open(tmp_path / "c").restore(optimizer=other)
    assert [f.code for f in caught.value.report.errors] == ["optimizer-shapes"]
    assert same(before, snapshot(fresh, other))


@pytest.mark.parametrize("named", [True, False], ids=["named in the file", "nameless"])
def test_matching_by_position_is_never_silent(tmp_path: Path, named: bool) -> None:
    model, fresh = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
    optimizer, other = (torch.optim.Adam(m.parameters()) for m in (model, fresh))
    holdtrue.save(tmp_path / "c", optimizer=optimizer, **({"model": model} if named else {}))
    opened = holdtrue.open(tmp_path / "c")
    if named:
        opened.restore(model=fresh)
    (found,) = [
        f for f in opened.restore(optimizer=other).findings if f.code == "optimizer-by-position"
    ]
    assert (found.severity, found.where) == ("warning", "optimizer")
    assert "the same" in (found.fix or "")
    if named:
        report = opened.restore(model=fresh, optimizer=other)
        assert "optimizer-by-position" not in {f.code for f in report.findings}


def test_an_optimizer_inside_a_list_is_matched_by_position_aloud(tmp_path: Path) -> None:
    model, fresh = Net(1), Net(2)
    optimizer, other = (torch.optim.Adam(m.parameters()) for m in (model, fresh))
    train(model, [optimizer], 0, 2)
    holdtrue.save(tmp_path / "c", model=model, os=[optimizer])
    report = holdtrue.open(tmp_path / "c").restore(model=fresh, os=[other])
    (found,) = [f for f in report.findings if f.code == "optimizer-by-position"]
    assert (found.severity, found.where) == ("warning", "os[0]")
    assert train(fresh, [other], 2) == train(model, [optimizer], 2)


# -- the order and grouping of parameters ------------------------------------------------


def by_name(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """State and settings of each parameter, by its name."""
    names = {id(p): n for n, p in model.named_parameters()}
    return {
        names[id(p)]: (
            optimizer.state.get(p, {}),
            {k: v for k, v in group.items() if k != "params"},
        )
        for group in optimizer.param_groups
        for p in group["params"]
    }


def snapshot(model: nn.Module, optimizer: Optimizer) -> Any:
    state = {k: v.clone() for k, v in model.state_dict().items()}
    named = by_name(model, optimizer)
    return state, {
        n: ({k: v.clone() if isinstance(v, Tensor) else v for k, v in s.items()}, dict(g))
        for n, (s, g) in named.items()
    }


def adam(groups: list[Any]) -> Optimizer:
    return torch.optim.AdamW(groups, lr=0.5, weight_decay=0.5)


def split(model: Any, how: str) -> list[Any]:
    p = dict(model.named_parameters())
    weights = [n for n in p if n.endswith("weight")]
    rest = [n for n in p if n not in weights]

    def group(names: list[str], **options: Any) -> dict[str, Any]:
        return {"params": [p[n] for n in names], **options}

    decay, bare = {"lr": 0.01, "weight_decay": 0.1}, {"lr": 0.02, "weight_decay": 0.0}
    return {
        "saved": [group(weights, **decay), group(rest, **bare)],
        "swapped": [group(rest), group(weights)],
        "reordered": [group(weights[::-1]), group(rest[::-1])],
        "split": [group(weights[:1]), group(rest), group(weights[1:])],
        "each": [group([n]) for n in [*rest, *weights]],
        "merged": [group([*weights, *rest])],
        "empty beside": [group(weights), group(rest), group([])],
    }[how]


@pytest.mark.parametrize("how", ["saved", "swapped", "reordered", "split", "each", "empty beside"])
def test_parameters_reordered_and_regrouped_keep_what_is_theirs(tmp_path: Path, how: str) -> None:
    model = Net(1)
    optimizer = adam(split(model, "saved"))
    train(model, [optimizer], 0, 3)
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer)
    saved = by_name(model, optimizer)
    fresh = Net(2)
    other = adam(split(fresh, how))
    holdtrue.open(tmp_path / "c").restore(model=fresh, optimizer=other)
    restored = by_name(fresh, other)
    assert restored.keys() == saved.keys()
    for name, (state, options) in saved.items():
        assert same(state, restored[name][0]), name
        assert options == restored[name][1], name
    assert train(fresh, [other], 3) == train(model, [optimizer], 3)


def test_groups_merged_with_other_settings_are_a_finding(tmp_path: Path) -> None:
    model, fresh = Net(1), Net(2)
    optimizer, other = adam(split(model, "saved")), adam(split(fresh, "merged"))
    train(model, [optimizer], 0, 2)
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer)
    before = snapshot(fresh, other)
    with pytest.raises(holdtrue.RestoreError) as caught:
        holdtrue.open(tmp_path / "c").restore(model=fresh, optimizer=other)
    assert [f.code for f in caught.value.report.errors] == ["optimizer-groups-merged"]
    assert same(before, snapshot(fresh, other))
    holdtrue.open(tmp_path / "c").restore(
        model=fresh, optimizer=other, allow=["optimizer-groups-merged"]
    )
    assert other.param_groups[0]["lr"] == 0.5
    state = by_name(fresh, other)
    assert all(same(s, state[n][0]) for n, (s, _) in by_name(model, optimizer).items())


def test_groups_merged_with_equal_settings_are_fine(tmp_path: Path) -> None:
    model, fresh = Net(1), Net(2)
    optimizer = torch.optim.Adam([{"params": [p]} for p in model.parameters()], lr=0.01)
    other = torch.optim.Adam(fresh.parameters(), lr=0.5)
    train(model, [optimizer], 0, 2)
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer)
    holdtrue.open(tmp_path / "c").restore(model=fresh, optimizer=other)
    assert train(fresh, [other], 2) == train(model, [optimizer], 2)


def test_parameters_that_came_or_went_are_findings_that_can_be_allowed(tmp_path: Path) -> None:
    model, fresh = Net(1), Net(2)
    some = [p for n, p in model.named_parameters() if not n.startswith("conv")]
    optimizer = torch.optim.Adam(some, lr=0.01)
    train(model, [optimizer], 0, 2)
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer)
    other = torch.optim.Adam([p for n, p in fresh.named_parameters() if not n.startswith("out")])
    before = snapshot(fresh, other)
    with pytest.raises(holdtrue.RestoreError) as caught:
        holdtrue.open(tmp_path / "c").restore(model=fresh, optimizer=other)
    found = {f.code: f.places for f in caught.value.report.errors}
    assert found == {
        "optimizer-params-missing": ("model/conv.bias", "model/conv.weight"),
        "optimizer-params-unexpected": ("model/out.bias", "model/out.weight"),
    }
    assert same(before, snapshot(fresh, other))
    holdtrue.open(tmp_path / "c").restore(model=fresh, optimizer=other, allow=list(found))
    saved, restored = by_name(model, optimizer), by_name(fresh, other)
    assert all(same(saved[n][0], s) for n, (s, _) in restored.items() if n in saved)
    assert restored["conv.weight"][0] == {}
    train(fresh, [other], 2, 2)


def test_freezing_leaves_state_with_its_parameter(tmp_path: Path) -> None:
    model, fresh = Net(1), Net(2)
    optimizer, other = (torch.optim.Adam(m.parameters(), lr=0.01) for m in (model, fresh))
    train(model, [optimizer], 0, 2)
    model.mid.requires_grad_(False)
    train(model, [optimizer], 2, 2)
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer)
    holdtrue.open(tmp_path / "c").restore(model=fresh, optimizer=other)
    assert not fresh.mid.weight.requires_grad
    model.mid.requires_grad_(True), fresh.mid.requires_grad_(True)
    assert train(fresh, [other], 4) == train(model, [optimizer], 4)


def test_groups_added_later_in_another_order(tmp_path: Path) -> None:
    def make(seed: int, names: list[str]) -> tuple[Net, Optimizer]:
        model = Net(seed)
        optimizer = torch.optim.SGD(model.conv.parameters(), lr=0.3, momentum=0.9)
        for i, name in enumerate(names):
            module = model.get_submodule(name)
            optimizer.add_param_group({"params": list(module.parameters()), "lr": 0.1 * (i + 1)})
        return model, optimizer

    model, optimizer = make(1, ["mid", "out", "norm"])
    fresh, other = make(2, ["norm", "mid", "out"])
    train(model, [optimizer], 0, 3)
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer)
    holdtrue.open(tmp_path / "c").restore(model=fresh, optimizer=other)
    assert train(fresh, [other], 3) == train(model, [optimizer], 3)


def test_tied_parameters_have_one_state(tmp_path: Path) -> None:
    def make(seed: int) -> tuple[nn.Module, Optimizer]:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))
        model[3].weight = model[1].weight
        return model, torch.optim.Adam(model.parameters(), lr=0.01)

    model, optimizer = make(1)
    train(model, [optimizer], 0, 3)
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer)
    fresh, other = make(2)
    holdtrue.open(tmp_path / "c").restore(model=fresh, optimizer=other)
    assert fresh[3].weight is fresh[1].weight
    assert train(fresh, [other], 3) == train(model, [optimizer], 3)


# -- several models and optimizers -------------------------------------------------------


def test_one_optimizer_over_two_models_and_parts_in_another_order(tmp_path: Path) -> None:
    shared = nn.Linear(6, 6)

    def make(seed: int, linear: nn.Module) -> tuple[nn.Module, nn.Module, Optimizer]:
        torch.manual_seed(seed)
        a = nn.Sequential(nn.Flatten(), linear, nn.Linear(6, 4))
        b = nn.Sequential(nn.Flatten(), linear, nn.Tanh(), nn.Linear(6, 2))
        every = dict.fromkeys([*b.parameters(), *a.parameters()])
        return a, b, torch.optim.Adam(list(every), lr=0.01)

    a, b, optimizer = make(1, shared)
    for step in range(3):
        train(a, [optimizer], step, 1), train(b, [optimizer], step, 1)
    holdtrue.save(tmp_path / "c", a=a, optimizer=optimizer, b=b)
    a2, b2, other = make(2, nn.Linear(6, 6))
    holdtrue.open(tmp_path / "c").restore(b=b2, a=a2, optimizer=other)
    assert train(a2, [other], 3, 2) == train(a, [optimizer], 3, 2)
    assert train(b2, [other], 5, 2) == train(b, [optimizer], 5, 2)


def test_a_generator_and_a_discriminator_with_their_optimizers(tmp_path: Path) -> None:
    def make(seed: int) -> dict[str, Any]:
        g, d = Net(seed), Net(seed + 1)
        return {"g": g, "d": d, "opt_g": torch.optim.Adam(g.parameters(), betas=(0.5, 0.9)),
                "opt_d": torch.optim.RMSprop(d.parameters(), momentum=0.5)}  # fmt: skip

    def go(p: dict[str, Any], start: int, steps: int) -> list[bytes]:
        return train(p["g"], [p["opt_g"]], start, steps) + train(p["d"], [p["opt_d"]], start, steps)

    saved, fresh = make(1), make(5)
    go(saved, 0, 3)
    holdtrue.save(tmp_path / "c", **saved)
    holdtrue.open(tmp_path / "c").restore(**fresh)
    assert go(fresh, 3, STEPS) == go(saved, 3, STEPS)


def test_two_optimizers_over_one_model(tmp_path: Path) -> None:
    def make(seed: int) -> tuple[Net, list[Optimizer]]:
        model = Net(seed)
        first = [*model.conv.parameters(), *model.norm.parameters()]
        second = [*model.mid.parameters(), *model.conv.parameters()]
        return model, [
            torch.optim.Adam(first, lr=0.01),
            torch.optim.SGD(second, 0.01, momentum=0.9),
        ]

    model, optimizers = make(1)
    train(model, optimizers, 0, 3)
    holdtrue.save(tmp_path / "c", model=model, one=optimizers[0], two=optimizers[1])
    fresh, others = make(2)
    holdtrue.open(tmp_path / "c").restore(model=fresh, two=others[1], one=others[0])
    assert train(fresh, others, 3) == train(model, optimizers, 3)


# -- dtypes, memory, failure -------------------------------------------------------------


@pytest.mark.parametrize("name", ["SGD", "Adam", "Adagrad"])
def test_low_precision_parameters(tmp_path: Path, name: str) -> None:
    model, fresh = Net(1, torch.bfloat16), Net(2, torch.bfloat16)
    make = getattr(torch.optim, name)
    optimizer, other = make(model.parameters(), lr=0.01), make(fresh.parameters(), lr=0.01)
    train(model, [optimizer], 0, 3)
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer)
    holdtrue.open(tmp_path / "c").restore(model=fresh, optimizer=other)
    assert train(fresh, [other], 3) == train(model, [optimizer], 3)


def test_a_step_count_is_never_rounded_to_the_parameters_dtype(tmp_path: Path) -> None:
    model, fresh = Net(1), Net(2, torch.bfloat16)
    optimizer, other = (torch.optim.Adam(m.parameters()) for m in (model, fresh))
    train(model, [optimizer], 0, 1)
    for state in optimizer.state.values():
        state["step"].fill_(3001.0)
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer)
    holdtrue.open(tmp_path / "c").restore(model=fresh, optimizer=other, allow=["dtype-narrowed"])
    state = other.state[fresh.conv.weight]
    assert (state["step"].dtype, state["step"].item()) == (torch.float32, 3001.0)
    assert state["exp_avg"].dtype is torch.bfloat16


@pytest.mark.parametrize("alone", [False, True], ids=["with the model", "alone"])
def test_narrowed_moments_are_an_error_that_tells_what_is_lost(tmp_path: Path, alone: bool) -> None:
    model, fresh = Net(1), Net(2, torch.float16)
    optimizer, other = (torch.optim.Adam(m.parameters()) for m in (model, fresh))
    train(model, [optimizer], 0, 1)
    optimizer.state[model.conv.weight]["exp_avg_sq"].fill_(1e6)
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer)
    targets = {"optimizer": other} if alone else {"model": fresh, "optimizer": other}
    before = snapshot(fresh, other)
    with pytest.raises(holdtrue.RestoreError) as caught:
        holdtrue.open(tmp_path / "c").restore(**targets)
    assert {f.code for f in caught.value.report.errors} == {"dtype-narrowed"}
    places = [p for f in caught.value.report.errors for p in f.places]
    assert [p for p in places if "exp_avg_sq" in p and "12 overflow" in p]
    assert not [p for p in places if "step" in p]
    assert same(before, snapshot(fresh, other))
    holdtrue.open(tmp_path / "c").restore(**targets, allow=["dtype-narrowed"])
    assert other.state[fresh.conv.weight]["exp_avg_sq"].dtype is torch.float16


def test_widened_moments_are_a_note(tmp_path: Path) -> None:
    model, fresh = Net(1, torch.bfloat16), Net(2)
    optimizer, other = (torch.optim.Adam(m.parameters()) for m in (model, fresh))
    train(model, [optimizer], 0, 1)
    holdtrue.save(tmp_path / "c", optimizer=optimizer)
    report = holdtrue.open(tmp_path / "c").restore(optimizer=other)
    assert ("dtype-widened", "note") in {(f.code, f.severity) for f in report.findings}


class Wide(Optimizer):
    """Moments in float32 whatever the parameter is, as mixed-precision training has them."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["master"], state["m"] = p.float().clone(), torch.zeros_like(p).float()
                state["m"].mul_(0.9).add_(p.grad.float())
                state["master"].sub_(group["lr"] * state["m"])
                p.copy_(state["master"])


class Own(Wide):
    """An optimizer that says itself what its state is."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, lr)
        self.extra = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)
        self.extra += 1

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "extra": self.extra}

    def load_state_dict(self, state: Any) -> None:
        state = dict(state)
        self.extra = state.pop("extra")
        super().load_state_dict(state)


def test_state_in_a_wider_dtype_than_its_parameter_is_not_rounded(tmp_path: Path) -> None:
    model, fresh = Net(1, torch.bfloat16), Net(2, torch.bfloat16)
    optimizer, other = Wide(model.parameters()), Wide(fresh.parameters())
    train(model, [optimizer], 0, 3)
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer)
    holdtrue.open(tmp_path / "c").restore(model=fresh, optimizer=other)
    assert other.state[fresh.conv.weight]["master"].dtype is torch.float32
    assert train(fresh, [other], 3) == train(model, [optimizer], 3)


def test_an_optimizer_with_a_state_dict_of_its_own(tmp_path: Path) -> None:
    model, fresh = Net(1), Net(2)
    optimizer, other = Own(model.parameters()), Own(fresh.parameters())
    train(model, [optimizer], 0, 3)
    torch.manual_seed(11)
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer)
    drawn = torch.rand(2)
    holdtrue.open(tmp_path / "c").restore(model=fresh, optimizer=other)
    assert torch.equal(torch.rand(2), drawn)  # an optimizer among the targets: a resume
    assert other.extra == 3
    assert train(fresh, [other], 3) == train(model, [optimizer], 3)
    assert other.extra == optimizer.extra


def test_state_tensors_are_filled_in_place_and_never_shared(tmp_path: Path) -> None:
    model, fresh = Net(1), Net(2)
    optimizer, other = (torch.optim.Adam(m.parameters()) for m in (model, fresh))
    train(model, [optimizer], 0, 2), train(fresh, [other], 0, 1)
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer)
    held = {id(t) for s in other.state.values() for t in s.values()}
    state, groups = other.state, [id(g) for g in other.param_groups]
    opened = holdtrue.open(tmp_path / "c")
    opened.restore(model=fresh, optimizer=other)
    assert {id(t) for s in other.state.values() for t in s.values()} == held
    assert other.state is state
    assert [id(g) for g in other.param_groups] == groups
    third = Net(3)
    last = torch.optim.Adam(third.parameters())
    opened.restore(model=third, optimizer=last)
    places = [t.data_ptr() for o in (other, last) for s in o.state.values() for t in s.values()]
    assert len(places) == len(set(places))


def test_a_parameter_without_a_gradient_gets_no_state(tmp_path: Path) -> None:
    model, fresh = Net(1), Net(2)
    optimizer, other = (torch.optim.Adam(m.parameters()) for m in (model, fresh))
    train(model, [optimizer], 0, 2)
    fresh.unused.grad = torch.ones(3)
    other.step()
    assert fresh.unused in other.state
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer)
    holdtrue.open(tmp_path / "c").restore(model=fresh, optimizer=other)
    assert model.unused not in optimizer.state
    assert fresh.unused not in other.state


def test_an_optimizer_built_on_lazy_parameters_that_are_filled_by_the_restore(
    tmp_path: Path,
) -> None:
    def lazy(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(4), nn.Linear(4, 2))

    model = lazy(1)
    model(torch.rand(1, 1, 6))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, [optimizer], 0, 2)
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer)
    fresh = lazy(2)
    other = torch.optim.Adam(fresh.parameters(), lr=0.01)
    holdtrue.open(tmp_path / "c").restore(model=fresh, optimizer=other)
    assert train(fresh, [other], 2) == train(model, [optimizer], 2)


def test_another_optimizer_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    model, fresh = Net(1), Net(2)
    optimizer, other = (
        torch.optim.Adam(model.parameters()),
        torch.optim.SGD(fresh.parameters(), 0.1),
    )
    train(model, [optimizer], 0, 2)
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer)
    before = snapshot(fresh, other)
    with pytest.raises(holdtrue.RestoreError) as caught:
        holdtrue.open(tmp_path / "c").restore(model=fresh, optimizer=other)
    assert "class-changed" in {f.code for f in caught.value.report.errors}
    assert same(before, snapshot(fresh, other))


def test_a_failure_in_a_later_part_leaves_every_optimizer_unchanged(tmp_path: Path) -> None:
    class Fragile:
        def __init__(self) -> None:
            self.x = 1

        def __setstate__(self, state: Any) -> None:
            raise RuntimeError("no")

    model, fresh = Net(1), Net(2)
    optimizer, other = (torch.optim.Adam(m.parameters()) for m in (model, fresh))
    train(model, [optimizer], 0, 2), train(fresh, [other], 0, 1)
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer, z=Fragile())
    before, rng = snapshot(fresh, other), torch.get_rng_state()
    with pytest.raises(holdtrue.RestoreError):
        holdtrue.open(tmp_path / "c").restore(model=fresh, optimizer=other, z=Fragile())
    assert same(before, snapshot(fresh, other))
    assert torch.equal(torch.get_rng_state(), rng)


def test_settings_that_differ_are_said(tmp_path: Path) -> None:
    model, fresh = Net(1), Net(2)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.3)
    other = torch.optim.AdamW(fresh.parameters(), weight_decay=0.0)
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer)
    report = holdtrue.open(tmp_path / "c").restore(model=fresh, optimizer=other)
    assert "settings-from-file" in {f.code for f in report.findings}
    assert other.param_groups[0]["weight_decay"] == 0.3


def test_every_pair_of_orders_of_three_groups(tmp_path: Path) -> None:
    names = ["conv", "mid", "out"]

    def make(seed: int, order: Any) -> tuple[Net, Optimizer]:
        model = Net(seed)
        rates = {"conv": 0.1, "mid": 0.01, "out": 0.001}
        groups = [
            {"params": list(model.get_submodule(n).parameters()), "lr": rates[n]} for n in order
        ]
        return model, torch.optim.SGD(groups, lr=1.0, momentum=0.9)

    model, optimizer = make(1, names)
    train(model, [optimizer], 0, 2)
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer)
    expected = train(model, [optimizer], 2, 2)
    for order in itertools.permutations(names):
        fresh, other = make(2, order)
        holdtrue.open(tmp_path / "c").restore(model=fresh, optimizer=other)
        assert train(fresh, [other], 2, 2) == expected, order


@pytest.mark.parametrize("place", ["state", "settings"])
def test_state_without_values_is_refused(tmp_path: Path, place: str) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    if place == "state":
        state["state"][0]["exp_avg"] = torch.empty(2, 2, device="meta")
    else:
        state["param_groups"][0]["lr"] = torch.empty((), device="meta")
    torch.save({"model": model.state_dict(), "optimizer": state}, tmp_path / "f.pt")
    before = bits(optimizer.state_dict()["state"][0]["exp_avg"])
    checkpoint = holdtrue.open(tmp_path / "f.pt")
    with pytest.raises(holdtrue.RestoreError) as caught:
        checkpoint.restore(model=model, optimizer=optimizer)
    assert "values-missing" in {finding.code for finding in caught.value.report.findings}
    checkpoint.restore(model=model, optimizer=optimizer, allow=["values-missing"])
    assert bits(optimizer.state_dict()["state"][0]["exp_avg"]) == before
    found = holdtrue.diagnose(tmp_path / "f.pt")
    assert "values-missing" in {finding.code for finding in found.findings}
