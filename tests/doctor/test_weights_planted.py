"""Each fault that is planted into the values of a real model is found, and its twin is quiet."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import holdtrue
from holdtrue.limits import override


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 8, padding_idx=0)
        self.conv = nn.Conv1d(8, 8, 3)
        self.norm = nn.BatchNorm1d(8)
        self.wide = nn.Linear(8, 600)
        self.back = nn.Linear(600, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.norm(self.conv(self.embedding(x).transpose(1, 2))).mean(2)
        return self.head(self.back(self.wide(x).relu()))


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randint(1, 50, (16, 12))).square().mean().backward()
        optimizer.step()
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


@pytest.fixture
def state(trained):
    return copy.deepcopy(trained)


def diagnosed(path):
    return {f.code: f for f in holdtrue.diagnose(path, deep=True).findings}


def planted(tmp_path, state, **kw):
    torch.save(state, tmp_path / "f.pt", **kw)
    return diagnosed(tmp_path / "f.pt")


def _nan(model):
    model["back.weight"][3, 5] = torch.nan
    model["conv.weight"][1, 2, 0] = -torch.inf


def _all_nan(model):
    for value in model.values():
        if value.is_floating_point():
            value.fill_(torch.nan)


def _second_half(model):
    model["wide.weight"].view(-1)[2404:] = 0


MODEL = {
    "weights-not-finite": ("error", _nan, "model/conv.weight[1, 2, 0]"),
    "weights-extreme": ("warning", lambda m: m["head.weight"][1].fill_(3e30), "model/head.weight"),
    "weights-all-zero": ("warning", lambda m: m["head.weight"].zero_(), "model/head.weight"),
    "weights-constant": ("warning", lambda m: m["back.weight"].fill_(0.5), "model/back.weight"),
    "zeros-in-weights": ("warning", _second_half, "model/wide.weight"),
    "weights-denormal": ("warning", lambda m: m["back.weight"].mul_(1e-38), "model/back.weight"),
    "beyond-float16": ("note", lambda m: m["head.weight"].mul_(1e6), "model/head.weight"),
    "batchnorm-variance": (
        "error", lambda m: m["norm.running_var"][2].fill_(-0.5), "model/norm.running_var"),
    "batchnorm-variance-zero": (
        "warning", lambda m: m["norm.running_var"].zero_(), "model/norm.running_var"),
    "batchnorm-untracked": (
        "warning", lambda m: (m["norm.running_mean"].zero_(), m["norm.running_var"].fill_(1)),
        "model/norm.running_mean"),
    "embedding-rows-untrained": (
        "note", lambda m: m["embedding.weight"][40:].zero_(), "model/embedding.weight"),
}  # fmt: skip


def test_the_healthy_twin_is_quiet(tmp_path, state):
    codes = planted(tmp_path, state)
    assert not [f for f in codes.values() if f.severity != "note"]
    assert not set(MODEL) & set(codes) - {"embedding-rows-untrained"}


@pytest.mark.parametrize("code", MODEL)
def test_a_fault_in_the_weights_is_found(tmp_path, state, code):
    severity, plant, where = MODEL[code]
    plant(state["model"])
    found = planted(tmp_path, state)
    assert code in found
    assert found[code].severity == severity
    assert found[code].where.startswith(where)
    others = {c for c, f in found.items() if f.severity != "note"} - {code}
    assert not others
    save_file(state["model"], tmp_path / "f.safetensors")
    assert code in diagnosed(tmp_path / "f.safetensors")


@pytest.mark.parametrize("chunk", [512, 4096])
@pytest.mark.parametrize("code", MODEL)
def test_the_size_of_blocks_changes_nothing(tmp_path, state, code, chunk):
    MODEL[code][1](state["model"])
    whole = planted(tmp_path, state)
    with override(chunk_bytes=chunk):
        assert diagnosed(tmp_path / "f.pt") == whole


def test_nan_everywhere_is_one_finding(tmp_path, state):
    _all_nan(state["model"])
    found = planted(tmp_path, state)["weights-not-finite"]
    assert found.count == sum(v.is_floating_point() for v in state["model"].values())
    assert "loss" in found.why


def _flip(moment, change):
    def plant(optimizer):
        change(optimizer["state"][3][moment])

    return plant


MOMENTS = {
    "moments-not-finite": ("error", _flip("exp_avg", lambda t: t[0].fill_(torch.nan))),
    "moments-negative": ("error", _flip("exp_avg_sq", lambda t: t[1].fill_(-1e-3))),
    "moments-exploded": ("warning", _flip("exp_avg_sq", lambda t: t.fill_(1e25))),
    "moments-inconsistent": ("warning", _flip("exp_avg_sq", lambda t: t.zero_())),
    "gradients-zero": (
        "warning",
        lambda o: [t.zero_() for s in o["state"].values() for k, t in s.items() if k != "step"],
    ),
}


@pytest.mark.parametrize("code", MOMENTS)
def test_a_fault_in_the_moments_is_found(tmp_path, state, code):
    severity, plant = MOMENTS[code]
    assert code not in planted(tmp_path, state)
    plant(state["optimizer"])
    found = planted(tmp_path, state)
    assert found[code].severity == severity
    if found[code].command:  # the line that it prints restores the model
        model = Net()
        exec(found[code].command, {"holdtrue": holdtrue, "model": model})
        assert torch.equal(model.state_dict()["wide.weight"], state["model"]["wide.weight"])


def test_holdtrues_own_checkpoints_are_read_too(tmp_path):
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randint(1, 50, (4, 9))).sum().backward()
    optimizer.step()
    with torch.no_grad():
        model.head.weight[0, 0] = torch.nan
        optimizer.state[model.back.weight]["exp_avg_sq"].neg_()
    holdtrue.save(tmp_path / "c", model=model, optimizer=optimizer)
    found = diagnosed(tmp_path / "c")
    assert found["weights-not-finite"].where.startswith("model/head.weight[0, 0]")
    assert "back.weight" in found["moments-negative"].where


def test_a_whole_pickled_model_is_read_by_names_in_words(tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    nn.init.normal_(model[1].weight)
    torch.save(model, tmp_path / "f.pt")
    assert "batchnorm-untracked" in diagnosed(tmp_path / "f.pt")


def test_an_adapter_that_does_nothing(tmp_path):
    torch.manual_seed(0)
    factors = {
        f"base_model.model.layers.{i}.q_proj.lora_{f}.weight": torch.randn(8, 8)
        for i in range(3)
        for f in "AB"
    }
    save_file(factors, tmp_path / "a.safetensors")
    assert "lora-without-effect" not in diagnosed(tmp_path / "a.safetensors")
    factors["base_model.model.layers.1.q_proj.lora_B.weight"].zero_()
    save_file(factors, tmp_path / "a.safetensors")
    assert diagnosed(tmp_path / "a.safetensors")["lora-without-effect"].severity == "note"
    zero = {k: v.zero_() if "lora_B" in k else v for k, v in factors.items()}
    save_file(zero, tmp_path / "a.safetensors")
    found = diagnosed(tmp_path / "a.safetensors")
    assert found["lora-without-effect"].severity == "warning"
    assert "weights-all-zero" not in found


@pytest.mark.parametrize("pages", [1, 3])
def test_a_lost_page_of_the_file(tmp_path, pages):
    torch.manual_seed(0)
    path = tmp_path / "f.safetensors"
    save_file({"a.weight": torch.randn(300, 100), "b.weight": torch.randn(70, 90)}, path)
    assert "zeros-in-weights" not in diagnosed(path)
    data = bytearray(path.read_bytes())
    data[8192 : 8192 + 4096 * pages] = bytes(4096 * pages)
    path.write_bytes(data)
    assert "pages" in diagnosed(path)["zeros-in-weights"].why


def test_a_lost_page_that_spans_small_tensors(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "f.safetensors"
    save_file({f"{i:02}.weight": torch.randn(30, 25) for i in range(20)}, path)
    data = bytearray(path.read_bytes())
    data[8192:16384] = bytes(8192)
    path.write_bytes(data)
    assert diagnosed(path)["zeros-in-weights"].severity == "warning"
    assert "weights-all-zero" in diagnosed(path)


def test_rows_of_zeros_are_a_note(tmp_path):
    torch.manual_seed(0)
    weight = torch.randn(60, 33)
    weight[30:] = 0
    save_file({"fc.weight": weight}, tmp_path / "f.safetensors")
    assert diagnosed(tmp_path / "f.safetensors")["zeros-in-weights"].severity == "note"


def test_infinity_in_a_weight_is_no_mask(tmp_path):
    name = "block.relative_attention_bias.weight"
    save_file({name: torch.tensor([[1.0, -torch.inf], [2, 3]])}, tmp_path / "f.safetensors")
    assert "weights-not-finite" in diagnosed(tmp_path / "f.safetensors")


def test_a_name_that_only_contains_ema(tmp_path):
    states = {"semantic": {"a": torch.ones(2), "b": torch.ones(3)}}
    states["other"] = copy.deepcopy(states["semantic"])
    assert "average-equals-raw" not in planted(tmp_path, states)


def test_pruned_weights_are_no_damage(tmp_path):
    torch.manual_seed(0)
    weight = torch.randn(300, 100)
    weight[torch.rand(300, 100) < 0.9] = 0
    blocks = torch.block_diag(*torch.randn(4, 64, 64))
    save_file({"a.weight": weight, "b.weight": blocks}, tmp_path / "f.safetensors")
    assert not diagnosed(tmp_path / "f.safetensors")


@pytest.mark.parametrize("kind", ["best", "ema"])
def test_two_states_that_are_one(tmp_path, state, kind):
    code = {"best": "best-equals-last", "ema": "average-equals-raw"}[kind]
    model = state["model"]
    other = {k: v + 1 for k, v in model.items()}
    assert code not in planted(tmp_path, {"state_dict": model, kind: other})
    copied = planted(tmp_path, {"state_dict": model, kind: copy.deepcopy(model)})
    assert copied[code].severity == "note"
    alias = planted(tmp_path, {"state_dict": model, kind: dict(model)})
    assert alias[code].severity == "warning"


def test_values_that_the_models_dtype_cannot_hold(tmp_path):
    save_file(
        {"weight": torch.tensor([[1.0, 7e4]]), "bias": torch.ones(1)}, tmp_path / "f.safetensors"
    )

    def codes(dtype):
        model = nn.Linear(2, 1, dtype=dtype)
        return {
            f.code
            for f in holdtrue.diagnose(tmp_path / "f.safetensors", deep=True, model=model).errors
        } - {"dtype-narrowed"}

    assert codes(torch.float32) == codes(torch.bfloat16) == set()
    assert codes(torch.float16) == {"values-out-of-range"}


def test_damage_on_the_way_is_told(tmp_path):
    holdtrue.save(tmp_path / "c", model=nn.Linear(4, 4))
    path = next((tmp_path / "c").glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    found = holdtrue.diagnose(tmp_path / "c", deep=True)
    assert "digest-mismatch" in {f.code for f in found.findings}


def test_bytes_that_are_repeated_too_often_are_not_read(tmp_path):
    torch.save({"w": torch.ones(1).expand(1 << 20, 1 << 12)}, tmp_path / "f.pt")
    found = diagnosed(tmp_path / "f.pt")
    assert "tensor-expanded" in found


def test_progress_ends_at_the_total(tmp_path, state):
    torch.save(state, tmp_path / "f.pt")
    told = []
    holdtrue.diagnose(tmp_path / "f.pt", deep=True, progress=lambda *at: told.append(at))
    assert told[-1][0] == told[-1][1] == max(told)[0]
    assert np.all(np.diff([done for done, _ in told]) >= 0)
