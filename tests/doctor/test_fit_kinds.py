"""Weights that are kept as something else: quantised, parametrised, named by another library."""

from pathlib import Path

import pytest
import torch
from fitting import codes, command_of, fill, run, saved
from safetensors.torch import save_file
from torch import nn

import holdtrue


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))


def test_float8_with_scales_is_quantised_whatever_the_cast_keeps(tmp_path):
    state = {}
    for name, tensor in fill(net()).state_dict().items():
        state[name] = tensor
        if name.endswith("weight"):
            scale = tensor.abs().max() / 448
            state[name] = (tensor / scale).to(torch.float8_e4m3fn)
            state[f"{name}_scale_inv"] = scale.reshape(1, 1)
    path = saved(state, tmp_path)
    report = holdtrue.diagnose(path, model=net())
    assert codes(report, "error") == {"quantisation-differs"}
    assert "dtype-widened" not in codes(report)
    assert command_of(report) == ""


def test_a_scale_of_the_models_own_is_no_quantisation(tmp_path):
    model = net()
    model.register_parameter("output_scale", nn.Parameter(torch.ones(1)))
    report = holdtrue.diagnose(saved(net().state_dict(), tmp_path), model=model)
    assert codes(report, "error") == {"missing-keys"}


def test_whole_numbers_for_floats_are_a_warning(tmp_path):
    state = {n: (t * 100).to(torch.int8) for n, t in fill(net()).state_dict().items()}
    path = saved(state, tmp_path)
    assert codes(holdtrue.diagnose(path, model=net()), "warning") == {"dtype-widened"}
    assert codes(holdtrue.open(path).restore(model=net()), "warning") == {"dtype-widened"}


def test_half_precision_stays_a_note(tmp_path):
    path = saved(fill(net()).half().state_dict(), tmp_path)
    assert not codes(holdtrue.diagnose(path, model=net()), "warning", "error")


def test_batch_statistics_by_the_names_of_tensorflow(tmp_path):
    model = fill(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
    old = {"1.weight": "1.gamma", "1.bias": "1.beta", "1.running_mean": "1.moving_mean",
           "1.running_var": "1.moving_variance"}  # fmt: skip
    state = {old.get(n, n): t for n, t in model.state_dict().items()}
    target = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    run(command_of(holdtrue.diagnose(saved(state, tmp_path), model=target)), target)
    for name in ("running_mean", "running_var", "weight"):
        assert torch.equal(getattr(target[1], name), getattr(model[1], name))


def test_spectral_norm_of_old_goes_into_that_of_today_with_its_vectors(tmp_path):
    model = nn.Sequential(torch.nn.utils.spectral_norm(nn.Linear(5, 3)))
    model(torch.randn(2, 5))
    state = model.state_dict()
    target = nn.Sequential(torch.nn.utils.parametrizations.spectral_norm(nn.Linear(5, 3)))
    run(command_of(holdtrue.diagnose(saved(state, tmp_path), model=target)), target)
    made = target.state_dict()
    assert torch.equal(made["0.parametrizations.weight.original"], state["0.weight_orig"])
    assert torch.equal(made["0.parametrizations.weight.0._u"], state["0.weight_u"])
    assert torch.equal(made["0.parametrizations.weight.0._v"], state["0.weight_v"])


def normed(kind: str, style: str) -> nn.Module:
    apply = getattr(
        nn.utils if style == "old" else nn.utils.parametrizations, kind, lambda m: m
    ) if style else (lambda m: m)  # fmt: skip
    return nn.Sequential(apply(nn.Conv1d(2, 4, 3)), nn.ReLU(), apply(nn.Linear(5, 3)))


def computed(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(x)


@pytest.mark.parametrize("style", ["old", "new"])
@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm"])
def test_normalised_weights_for_a_plain_model(kind, style, tmp_path):
    model, target = normed(kind, style), normed(kind, "")
    x = torch.randn(2, 2, 7)
    model(x)  # one step of the power iteration
    expected = computed(model, x)
    report = holdtrue.diagnose(saved(model.state_dict(), tmp_path), model=target)
    (error,) = report.errors
    assert (error.code, error.count) == ("parametrisation-differs", 2)
    exec(error.command, {"holdtrue": holdtrue, "torch": torch, "model": target})
    assert torch.allclose(computed(target, x), expected, atol=1e-5)
    assert target.state_dict().keys() == normed(kind, "").state_dict().keys()


@pytest.mark.parametrize("style", ["old", "new"])
def test_plain_weights_for_a_normalised_model(style, tmp_path):
    model, target = normed("weight_norm", ""), normed("weight_norm", style)
    x = torch.randn(2, 2, 7)
    expected, names = computed(model, x), target.state_dict().keys()
    (error,) = holdtrue.diagnose(saved(model.state_dict(), tmp_path), model=target).errors
    assert error.code == "parametrisation-differs"
    exec(error.command, {"holdtrue": holdtrue, "torch": torch, "model": target})
    assert torch.allclose(computed(target, x), expected, atol=1e-5)
    assert target.state_dict().keys() == names


def test_with_more_in_the_way_the_normalisation_is_told_without_a_command(tmp_path):
    state = normed("weight_norm", "new").state_dict()
    del state["2.bias"]
    report = holdtrue.diagnose(saved(state, tmp_path), model=normed("weight_norm", ""))
    assert codes(report, "error") == {"parametrisation-differs", "missing-keys"}
    assert command_of(report) == ""


class Block(nn.Module):
    """Four square matrices, which only their names tell apart, and two that are not."""

    def __init__(self, old: bool) -> None:
        super().__init__()
        made = {name: nn.Linear(4, 4) for name in "qkvo"}
        if old:
            inner = nn.ModuleDict({"query": made["q"], "key": made["k"], "value": made["v"]})
            output = nn.ModuleDict({"dense": made["o"]})
            self.attention = nn.ModuleDict({"attention": inner, "output": output})
            self.intermediate = nn.ModuleDict({"dense": nn.Linear(4, 8)})
            self.output = nn.ModuleDict({"dense": nn.Linear(8, 4)})
        else:
            self.attention = nn.ModuleDict({f"{name}_proj": m for name, m in made.items()})
            self.mlp = nn.ModuleDict({"fc1": nn.Linear(4, 8), "fc2": nn.Linear(8, 4)})


def test_query_key_value_by_what_they_are_called_in_each_layer(tmp_path):
    old = fill(nn.ModuleDict({"layer": nn.ModuleList(Block(True) for _ in range(3))}))
    target = nn.ModuleDict({"layers": nn.ModuleList(Block(False) for _ in range(3))})
    state = {n: old.state_dict()[n] for n in sorted(old.state_dict())}
    report = holdtrue.diagnose(saved_unordered(state, tmp_path), model=target)
    assert codes(report, "error") == {"names-differ"}
    run(command_of(report), target)
    for before, after in zip(old["layer"], target["layers"], strict=True):
        assert torch.equal(
            before.attention["attention"]["key"].weight, after.attention["k_proj"].weight
        )
        assert torch.equal(before.output["dense"].bias, after.mlp["fc2"].bias)
        assert torch.equal(before.attention["output"]["dense"].bias, after.attention["o_proj"].bias)


def saved_unordered(state: dict, folder: Path) -> str:
    save_file(state, folder / "file.safetensors")
    return str(folder / "file.safetensors")


@pytest.mark.parametrize(
    ("saved_model", "target", "told"),
    [
        (nn.LSTM(4, 4), nn.GRU(4, 4), "saved by an LSTM"),
        (nn.Conv2d(8, 4, 1), nn.Linear(8, 4), "dimensions of one element"),
        (nn.Conv2d(3, 4, 2), nn.Conv2d(1, 4, 2), "input channels"),
        (nn.Conv2d(3, 4, 2), nn.Conv2d(3, 4, 5), "kernel size"),
    ],
)
def test_what_another_shape_means(saved_model, target, told, tmp_path):
    report = holdtrue.diagnose(saved(saved_model.state_dict(), tmp_path), model=target)
    assert any(told in f.what for f in report.errors if f.code == "shape-mismatch"), report


def test_kernels_of_tensorflow_positions_and_key_value_heads(tmp_path):
    class Net(nn.Module):
        def __init__(self, positions: int, heads: int) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 2)
            self.position_embeddings = nn.Parameter(torch.zeros(1, positions, 4))
            self.k_proj = nn.Linear(4, heads)
            self.head = nn.Linear(4, 2)

    state = Net(5, 4).state_dict()
    state["conv.weight"] = state["conv.weight"].permute(2, 3, 1, 0).contiguous()
    report = holdtrue.diagnose(saved(state, tmp_path), model=Net(17, 2))
    told = " ".join(f.what for f in report.errors)
    for meaning in ("another order", "positions", "key and value heads"):
        assert meaning in told


@pytest.mark.parametrize("fused", [True, False], ids=["fused file", "split file"])
def test_gate_and_up_projection_together_and_apart(fused, tmp_path):
    def layers(together: bool) -> nn.Module:
        names = {"gate_up_proj": 12} if together else {"gate_proj": 6, "up_proj": 6}
        one = {n: nn.Linear(4, size, bias=False) for n, size in names.items()}
        return nn.ModuleList([nn.ModuleDict(one), nn.ModuleDict({"down_proj": nn.Linear(6, 4)})])

    model, target = fill(layers(fused)), layers(not fused)
    report = holdtrue.diagnose(saved(model.state_dict(), tmp_path), model=target)
    assert codes(report, "error") == {"gate-up-fused" if fused else "gate-up-split"}
    run(command_of(report), target)
    one, two = (model, target) if fused else (target, model)
    apart = torch.cat([two[0]["gate_proj"].weight, two[0]["up_proj"].weight])
    assert torch.equal(one[0]["gate_up_proj"].weight, apart)
    assert torch.equal(model[1]["down_proj"].weight, target[1]["down_proj"].weight)


def test_interleaved_attention_and_stacked_experts_are_named(tmp_path):
    interleaved = nn.ModuleDict({"query_key_value": nn.Linear(4, 12), "norm": nn.LayerNorm(4)})
    apart = nn.ModuleDict({f"{n}_proj": nn.Linear(4, 4) for n in "qkv"} | {"norm": nn.LayerNorm(4)})
    report = holdtrue.diagnose(saved(interleaved.state_dict(), tmp_path), model=apart)
    assert "layout-differs" in codes(report, "error")
    assert command_of(report) == ""
    experts = {f"experts.{i}.w1.weight": torch.ones(3, 4) for i in range(2)}
    stacked = nn.ModuleDict({"norm": nn.LayerNorm(4), "experts": nn.Module()})
    stacked["experts"].gate_up_proj = nn.Parameter(torch.zeros(2, 6, 4))
    state = nn.ModuleDict({"norm": nn.LayerNorm(4)}).state_dict() | experts
    report = holdtrue.diagnose(saved(state, tmp_path), model=stacked)
    assert "layout-differs" in codes(report, "error")
    assert command_of(report) == ""
