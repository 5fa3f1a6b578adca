"""The same numbers in other shapes: what they mean, and which of them restore rewrites."""

import pytest
import torch
from fitting import codes, command_of, fill, run, same, saved
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

import holdtrue


class Attention(nn.Module):
    def __init__(self, fused: bool, width: int, keys: int) -> None:
        super().__init__()
        if fused:
            self.qkv = nn.Linear(width, width + 2 * keys)
        else:
            self.q_proj = nn.Linear(width, width)
            self.k_proj = nn.Linear(width, keys)
            self.v_proj = nn.Linear(width, keys)
        self.proj = nn.Linear(width, width)


def stack(fused: bool, keys: int) -> nn.Module:
    return nn.ModuleDict({"blocks": nn.ModuleList(Attention(fused, 8, keys) for _ in range(2))})


def split(state: dict, keys: int) -> dict:
    made = {}
    for name, tensor in state.items():
        if "qkv" not in name:
            made[name] = tensor
            continue
        for role, part in zip("qkv", tensor.split([8, keys, keys]), strict=True):
            made[name.replace("qkv", f"{role}_proj")] = part.clone()
    return made


@pytest.mark.parametrize("keys", [8, 4], ids=["equal", "grouped query"])
@pytest.mark.parametrize("fused", [True, False], ids=["fused file", "split file"])
def test_query_key_value_together_and_apart(fused, keys, tmp_path):
    together = fill(stack(True, keys)).state_dict()
    apart = split(together, keys)
    target = stack(not fused, keys)
    path = saved(together if fused else apart, tmp_path)
    code = "qkv-fused" if fused else "qkv-split"
    with pytest.raises(holdtrue.RestoreError) as caught:
        holdtrue.open(path).restore(model=target)
    assert codes(caught.value.report, "error") == {code}
    report = holdtrue.diagnose(path, model=target)
    assert codes(report, "error") == {code}
    done = run(command_of(report), target)
    assert code in codes(done, "note")
    expected = apart if fused else together
    assert all(torch.equal(t, expected[n]) for n, t in target.state_dict().items())


def gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=12, n_positions=6,
                        bos_token_id=0, eos_token_id=0)  # fmt: skip
    return GPT2LMHeadModel(config)


def test_matrices_stored_the_other_way_round_square_ones_too(tmp_path):
    model, target = fill(gpt2()), gpt2()
    turned = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    state = {n: t.T.clone() if n.endswith(turned) else t for n, t in model.state_dict().items()}
    report = holdtrue.diagnose(saved(state, tmp_path), model=target)
    (error,) = report.errors
    assert (error.code, error.confidence) == ("weights-transposed", "hint")
    run(error.command, target)
    assert same(target, model.state_dict())


def test_what_fsdp_flattened(tmp_path):
    model = fill(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)))
    flat = torch.cat([p.detach().flatten() for p in model.parameters()] + [torch.zeros(3)])
    target = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    report = holdtrue.diagnose(saved({"_flat_param": flat}, tmp_path), model=target)
    assert codes(report, "error") == {"flat-parameters"}
    run(command_of(report), target)
    assert same(target, model.state_dict())


class Small(nn.Module):
    def __init__(self, tokens=9, positions=7, channels=3, kernel=3, width=4, classes=5) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(tokens, 4)
        self.position_embedding = nn.Embedding(positions, 4)
        self.conv = nn.Conv2d(channels, 4, kernel)
        self.hidden = nn.Linear(4, width)
        self.head = nn.Linear(width, classes)


CAUSES = {
    "vocabulary": ({"tokens": 11}, "token_embedding.weight"),
    "positions": ({"positions": 9}, "position_embedding.weight"),
    "channels": ({"channels": 1}, "conv.weight"),
    "kernel": ({"kernel": 5}, "conv.weight"),
    "classes": ({"classes": 6}, "head.weight"),
    "sizes": ({"width": 6}, "hidden.weight"),
}


@pytest.mark.parametrize("case", CAUSES)
def test_which_dimension_and_what_it_means(case, tmp_path):
    sizes, name = CAUSES[case]
    target = Small(**sizes)
    path = saved(fill(Small()).state_dict(), tmp_path)
    report = holdtrue.diagnose(path, model=target)
    assert codes(report, "error") == {"shape-mismatch"}
    (meant,) = [f for f in report.errors if name in " ".join((f.where, *f.places))]
    assert case in meant.what
    assert "% of the model's elements are matched" in meant.why
    kept = target.state_dict()[name].clone()
    assert run(meant.command, target).ok
    assert torch.equal(target.state_dict()[name], kept)


def test_placeholders_and_single_elements(tmp_path):
    empty = {n: torch.zeros(0) for n in Small().state_dict()}
    (error,) = holdtrue.diagnose(saved(empty, tmp_path), model=Small()).errors
    assert "DeepSpeed" in error.why
    assert error.command == ""
    one = nn.ParameterDict({"w": nn.Parameter(torch.ones(1, 1))})
    (error,) = holdtrue.diagnose(saved({"w": torch.tensor(3.0)}, tmp_path), model=one).errors
    assert "one element" in error.what


def test_one_number_beside_another_cause(tmp_path):
    state = {"a": torch.tensor(3.0), "b": torch.ones(4)}
    target = nn.ParameterDict({"a": torch.ones(1), "b": torch.ones(5)})
    report = holdtrue.diagnose(saved(state, tmp_path), model=target)
    (error,) = report.errors
    assert "% of the model's elements are matched" in error.why
    run(error.command, target)
    assert target["a"] == 3


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("writer", ["torch", "bitsandbytes"])
def test_quantised_weights_for_a_floating_point_model(writer, tmp_path):
    model = nn.Sequential(nn.Linear(4, 3))
    if writer == "torch":
        state = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}).state_dict()
    else:
        state = {
            "0.weight": torch.zeros(6, 1, dtype=torch.uint8),
            "0.bias": torch.zeros(3),
            "0.weight.absmax": torch.ones(1),
            "0.weight.quant_map": torch.ones(16),
        }
    report = holdtrue.diagnose(saved(state, tmp_path), model=nn.Sequential(nn.Linear(4, 3)))
    assert codes(report, "error") == {"quantisation-differs"}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_a_tie_that_would_drop_one_of_two_values(tmp_path):
    one, other = torch.ones(5, 3), torch.zeros(5, 3)
    for second, found in ((one.clone(), set()), (other, {"tie-conflict"})):
        path = saved({"embed.weight": one, "head.weight": second}, tmp_path)
        assert codes(holdtrue.diagnose(path, model=Tied()), "error", "warning") == found
    with pytest.raises(holdtrue.RestoreError):
        holdtrue.open(path).restore(model=Tied())
    path = saved({"embed.weight": one}, tmp_path)
    assert not codes(holdtrue.diagnose(path, model=Tied()), "error", "warning")


def test_values_that_would_be_rounded(tmp_path):
    path = saved(fill(nn.Linear(3, 3)).state_dict(), tmp_path)
    target = nn.Linear(3, 3).half()
    report = holdtrue.diagnose(path, model=target)
    assert codes(report, "error") == {"dtype-narrowed"}
    run(command_of(report), target)
    assert target.weight.dtype is torch.float16
