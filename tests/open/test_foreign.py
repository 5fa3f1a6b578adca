"""Files that others wrote, opened and restored from, with and without their classes."""

import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import holdtrue
from holdtrue.records.inert import Record
from holdtrue.restore.nested import build_nested


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.ones(2), persistent=False)


def trained() -> Net:
    torch.manual_seed(1)
    model = Net()
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = torch.randn_like(tensor.data.float()).to(tensor.dtype)
    model.norm.eval()
    model.norm.weight.requires_grad_(False)
    return model


def assert_same(model: nn.Module, expected: nn.Module) -> None:
    for (name, a), (_, b) in zip(
        model.state_dict().items(), expected.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name


def codes(report: holdtrue.Report) -> set[str]:
    return {finding.code for finding in report.findings}


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + name: tensor for name, tensor in state.items()}


WRITERS = {
    "zip": lambda m, path: torch.save(m.state_dict(), path),
    "legacy": lambda m, path: torch.save(
        m.state_dict(), path, _use_new_zipfile_serialization=False
    ),
    "nested": lambda m, path: torch.save({"epoch": 3, "state_dict": m.state_dict()}, path),
    "module.": lambda m, path: torch.save({"model": prefixed(m.state_dict(), "module.")}, path),
    "stacked": lambda m, path: torch.save(
        prefixed(m.state_dict(), "_forward_module.module.model._orig_mod."), path
    ),
    "safetensors": lambda m, path: save_file(
        {n: t.clone() for n, t in m.state_dict().items()}, path
    ),
    "npz": lambda m, path: np.savez(
        path.open("wb"), **{n: t.numpy() for n, t in m.state_dict().items()}
    ),
    "whole": lambda m, path: torch.save(m, path),
    "whole legacy": lambda m, path: torch.save(m, path, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_restoring_a_model(writer, tmp_path, figure):
    expected = trained()
    WRITERS[writer](expected, tmp_path / "file")
    model = Net()
    before = model.embed.weight
    report = holdtrue.open(tmp_path / "file").restore(model=model)
    assert_same(model, expected)
    assert report.ok
    assert model.embed.weight is before is model.head.weight
    assert ("prefix-removed" in codes(report)) == (writer in ("module.", "stacked"))
    assert ("nested-key" in codes(report)) == (writer in ("nested", "module."))
    figure("foreign files restored from")


def test_a_state_dict_does_not_freeze_or_switch_modes(tmp_path):
    torch.save(trained().state_dict(), tmp_path / "sd.pt")
    model = Net()
    holdtrue.open(tmp_path / "sd.pt").restore(model=model)
    assert all(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules())


def test_a_whole_model_brings_its_flags(tmp_path):
    torch.save(trained(), tmp_path / "whole.pt")
    model = Net()
    holdtrue.open(tmp_path / "whole.pt").restore(model=model)
    assert not model.norm.training
    assert model.training
    assert not model.norm.weight.requires_grad


def test_a_whole_model_whose_class_is_gone(tmp_path, monkeypatch):
    lost = types.ModuleType("lost_package")
    monkeypatch.setitem(sys.modules, "lost_package", lost)
    lost.Lost = type("Lost", (Net,), {"__module__": "lost_package"})
    expected = lost.Lost()
    torch.save({"net": expected, "epoch": 7}, tmp_path / "whole.pt")
    monkeypatch.delitem(sys.modules, "lost_package")
    model = Net()
    checkpoint = holdtrue.open(tmp_path / "whole.pt")
    checkpoint.restore(net=model)
    assert_same(model, expected)
    assert checkpoint["epoch"] == 7
    assert list(checkpoint["net"]) == list(expected.state_dict())


def test_values_come_as_torch_gives_them(tmp_path):
    base = torch.arange(12.0)
    state = {"a": base[2:6], "b": base[4:8], "n": [1, {"x": base[:0]}], "s": torch.Size([2, 3])}
    torch.save(state, tmp_path / "f.pt")
    value = holdtrue.open(tmp_path / "f.pt")
    a, b = value["a"], value["b"]
    assert torch.equal(a, base[2:6])
    assert torch.equal(b, base[4:8])
    assert value["n"][1]["x"].shape == (0,)
    assert value["s"] == torch.Size([2, 3])


def test_views_of_one_storage_share_memory_again(tmp_path):
    base = torch.arange(12.0)
    torch.save({"pair": [base[2:6], base[4:8]]}, tmp_path / "f.pt")
    a, b = holdtrue.open(tmp_path / "f.pt")["pair"]
    a[2] = -1.0
    assert b[0] == -1.0


def test_the_right_one_of_several_state_dicts(tmp_path):
    model, ema = trained(), Net()
    torch.save({"model": model.state_dict(), "ema": ema.state_dict()}, tmp_path / "f.pt")
    first, second = Net(), Net()
    holdtrue.open(tmp_path / "f.pt").restore(model=first, ema=second)
    assert_same(first, model)
    assert_same(second, ema)


def test_an_optimizer_whose_names_are_not_known_is_refused_and_nothing_is_touched(tmp_path):
    model = trained()
    optimizer = torch.optim.Adam(model.parameters())
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "f")
    target = Net()
    before = {n: t.clone() for n, t in target.state_dict().items()}
    with pytest.raises(holdtrue.RestoreError) as caught:  # without the model
        holdtrue.open(tmp_path / "f").restore(optimizer=torch.optim.Adam(target.parameters()))
    assert "part-foreign" in codes(caught.value.report)
    assert all(torch.equal(t, before[n]) for n, t in target.state_dict().items())
    # What the finding proposes works.
    fresh = torch.optim.Adam(target.parameters())
    fresh.load_state_dict(holdtrue.open(tmp_path / "f")["optimizer"])


def test_a_flipped_bit_that_torch_does_not_see(tmp_path):
    model = trained()
    torch.save(model.state_dict(), tmp_path / "f.pt")
    data = bytearray((tmp_path / "f.pt").read_bytes())
    place = data.find(model.embed.weight.detach().numpy().tobytes())
    data[place + 3] ^= 0x40
    (tmp_path / "f.pt").write_bytes(data)
    torch.load(tmp_path / "f.pt", weights_only=True)
    assert not holdtrue.verify(tmp_path / "f.pt").ok
    target = Net()
    before = target.embed.weight.detach().clone()
    with pytest.raises(holdtrue.DamageError):
        holdtrue.open(tmp_path / "f.pt").restore(model=target)
    assert torch.equal(target.embed.weight, before)


def test_without_torch(tmp_path):
    import subprocess

    torch.save({"w": torch.arange(3.0), "names": ["a"]}, tmp_path / "f.pt")
    program = f"""
import sys
sys.modules["torch"] = None
import holdtrue
ck = holdtrue.open({str(tmp_path / "f.pt")!r})
assert ck["names"] == ["a"]
assert ck["w"].tolist() == [0.0, 1.0, 2.0]
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def linear(value: float) -> nn.Linear:
    layer = nn.Linear(2, 2)
    for parameter in layer.parameters():
        nn.init.constant_(parameter, value)
    return layer


def weights(value: float) -> dict[str, torch.Tensor]:
    return linear(value).state_dict()


def saved(content: object, tmp_path) -> holdtrue.Checkpoint:
    torch.save(content, tmp_path / "f.pt")
    return holdtrue.open(tmp_path / "f.pt")


# What is in the file, the name of the target, and the value of the state dict that is meant.
MEANT = {
    "gradients first": ({"grads": weights(0), "params": weights(1)}, "model"),
    "moments first": ({"optim": {"state": {"exp_avg": weights(0)}}, "net": weights(1)}, "model"),
    "by name": ({"ema": weights(0), "model_state_dict": weights(1)}, "model"),
    "by a part of the name": ({"netD": weights(0), "netG": weights(1)}, "G"),
    "in another case": ({"ema": weights(0), "Model": weights(1)}, "model"),
    "by its shapes": (
        {"old": {"weight": torch.zeros(5, 5), "bias": torch.zeros(5)}, "new": weights(1)},
        "model",
    ),
    "only gradients": ({"grads": weights(1)}, "model"),
}


@pytest.mark.parametrize("case", MEANT)
def test_the_state_dict_that_is_meant(case, tmp_path):
    content, name = MEANT[case]
    target = linear(9)
    saved(content, tmp_path).restore(**{name: target})
    assert target.weight[0, 0] == 1


def test_two_targets_take_two_state_dicts(tmp_path):
    checkpoint = saved({"netD": weights(1), "netG": weights(2)}, tmp_path)
    for names in (("G", "D"), ("D", "G")):
        targets = {name: linear(9) for name in names}
        checkpoint.restore(**targets)
        assert targets["D"].bias[0] == 1
        assert targets["G"].bias[0] == 2


@pytest.mark.parametrize(
    "content",
    [{"teacher": weights(1), "student": weights(2)}, [weights(1), weights(2)],
     {"model": {"weight": torch.ones(2, 2)}, "ema": weights(2)}],
    ids=["named", "list", "one called so fits less"],
)  # fmt: skip
def test_what_nothing_decides_is_asked_for(content, tmp_path):
    checkpoint, target = saved(content, tmp_path), linear(9)
    with pytest.raises(holdtrue.RestoreError) as caught:
        checkpoint.restore(model=target)
    assert codes(caught.value.report) == {"state-dict-ambiguous"}
    assert target.weight[0, 0] == 9
    last = list(content)[-1] if isinstance(content, dict) else "1"
    assert repr(last) in caught.value.report.errors[0].why
    report = checkpoint.restore(model=target, source={"model": last})
    assert target.weight[0, 0] == 2
    assert "source" in report.findings[0].why


def test_the_same_tensors_twice_are_no_question(tmp_path):
    state = weights(1)
    target = linear(9)
    saved({"a": state, "b": dict(state)}, tmp_path).restore(model=target)
    assert target.weight[0, 0] == 1


def test_a_source_that_is_not_there(tmp_path):
    checkpoint = saved({"a": weights(1)}, tmp_path)
    for source, code in (({"model": "b"}, "source-missing"), ({"mdoel": "a"}, "source-unused")):
        with pytest.raises(holdtrue.RestoreError) as caught:
            checkpoint.restore(model=linear(9), source=source)
        assert code in codes(caught.value.report)


@pytest.mark.parametrize(
    ("content", "says"),
    [(torch.optim.SGD(linear(0).parameters()).state_dict(), "an optimizer's state"),
     ({"epoch": 3, "lr": 0.1}, "'epoch' (a value of type int)"), ([1, 2], "list")],
    ids=["optimizer", "numbers", "list"],
)  # fmt: skip
def test_a_file_without_a_state_dict_says_what_it_holds(content, says, tmp_path):
    checkpoint = saved(content, tmp_path)
    with pytest.raises(holdtrue.RestoreError) as caught:
        checkpoint.restore(model=linear(9))
    assert codes(caught.value.report) == {"part-missing"}
    assert says in caught.value.report.errors[0].why
    assert checkpoint.restore(model=linear(9), allow="part-missing").ok


def quantized() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 3)), {nn.Linear})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("content", ["model", "state", "nested state"])
def test_packed_weights_are_never_nothing(content, tmp_path):
    model = quantized()
    state = model.state_dict()
    given = {"model": model, "state": state, "nested state": {"model": state, "norm": weights(1)}}
    checkpoint = saved(given[content], tmp_path)
    with pytest.raises(holdtrue.RestoreError) as caught:
        checkpoint.restore(model=quantized())
    assert codes(caught.value.report) & {"state-not-carried", "nothing-restored", "part-missing"}
    if content == "model":
        assert "state-not-carried" in codes(caught.value.report)
        assert checkpoint["model"] != {}


def test_a_meta_tensor_is_said_to_have_no_values(tmp_path):
    checkpoint = saved(
        {"weight": torch.empty(2, 2, device="meta"), "bias": torch.zeros(2)}, tmp_path
    )
    assert checkpoint["model"]["weight"].is_meta
    assert checkpoint["model"]["weight"].shape == (2, 2)
    target = linear(9)
    with pytest.raises(holdtrue.RestoreError) as caught:
        checkpoint.restore(model=target)
    assert codes(caught.value.report) == {"values-missing"}
    checkpoint.restore(model=target, allow="values-missing")
    assert target.weight[0, 0] == 9
    assert target.bias[0] == 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors(layout, tmp_path):
    rows = [torch.randn(2, 3), torch.randn(4, 3)]
    nested = torch.nested.nested_tensor(rows, layout=layout)
    value = saved({"n": nested, "w": torch.ones(2)}, tmp_path)["model"]
    assert torch.equal(value["w"], torch.ones(2))
    assert value["n"].is_nested
    assert all(torch.equal(a, b) for a, b in zip(value["n"].unbind(), rows, strict=True))


@pytest.mark.filterwarnings("ignore")
def test_a_transposed_jagged_tensor(tmp_path):
    rows = [torch.randn(2, 3), torch.randn(1, 3)]
    nested = torch.nested.nested_tensor(rows, layout=torch.jagged).transpose(1, 2)
    value = saved({"n": nested, "w": torch.ones(2)}, tmp_path)["model"]["n"]
    assert all(torch.equal(a, b.T) for a, b in zip(value.unbind(), rows, strict=True))


@pytest.mark.filterwarnings("ignore")
def test_a_nested_tensor_whose_parts_do_not_fit_stays_inert():
    bad = {"values": torch.ones(6), "offsets": torch.tensor([0, 2**40])}
    assert isinstance(build_nested(bad, None), Record)
    sizes = torch.tensor([[2**32, 2**32]])
    bad = {"values": torch.ones(6), "sizes": sizes, "strides": torch.zeros_like(sizes),
           "storage_offsets": torch.tensor([0])}  # fmt: skip
    assert isinstance(build_nested(bad, None), Record)


def test_views_that_torch_has_not_carried_out(tmp_path):
    views = {
        "imag": torch.randn(3, dtype=torch.complex64).conj().imag,
        "neg": torch._neg_view(torch.randn(6)[::2]),
        "sparse": torch.sparse_coo_tensor(torch.tensor([[0, 9, 2, 9]])[:, ::2], [1.0, 2.0], (3,)),
    }
    value = saved(views, tmp_path)["model"]
    assert torch.equal(value["imag"], views["imag"])
    assert torch.equal(value["neg"], views["neg"])
    assert torch.equal(value["sparse"].to_dense(), views["sparse"].to_dense())


def test_a_model_before_its_first_batch(tmp_path):
    value = saved(nn.Sequential(nn.LazyLinear(3)), tmp_path)["model"]
    assert list(value) == ["0.weight", "0.bias"]
    assert nn.parameter.is_lazy(value["0.weight"])


def test_a_whole_model_is_given_detached_and_its_flags_are_told(tmp_path):
    model = linear(1).eval()
    checkpoint = saved(model, tmp_path)
    assert not checkpoint["model"]["weight"].requires_grad
    assert type(checkpoint["model"]["weight"]) is torch.Tensor
    assert "training-restored" in codes(checkpoint.restore(model=linear(9)))


def test_a_prefix_of_most_names_is_told_not_guessed(tmp_path):
    state = prefixed(weights(1), "model.") | {"loss.weight": torch.ones(3)}
    checkpoint, target = saved({"state_dict": state}, tmp_path), linear(9)
    with pytest.raises(holdtrue.RestoreError) as caught:
        checkpoint.restore(model=target)
    assert codes(caught.value.report) >= {"names-differ", "unexpected-keys"}
    command = next(f.command for f in caught.value.report.errors if f.code == "names-differ")
    assert 'rename={"model.*": "*"}, allow=["unexpected-keys"]' in command
    checkpoint.restore(model=target, rename={"model.*": "*"}, allow=["unexpected-keys"])
    assert target.weight[0, 0] == 1


class Counting(nn.Linear):
    def get_extra_state(self) -> int:
        return 3

    def set_extra_state(self, state: int) -> None:
        raise AssertionError


def test_extra_state_of_a_whole_model_needs_its_class(tmp_path):
    checkpoint = saved(Counting(2, 2), tmp_path)
    with pytest.raises(holdtrue.RestoreError) as caught:
        checkpoint.restore(model=Counting(2, 2))
    (error,) = caught.value.report.errors
    assert error.code == "missing-keys"
    assert "get_extra_state" in error.why
    assert checkpoint.restore(model=Counting(2, 2), allow="missing-keys").ok


def test_a_cast_that_changes_no_value_is_a_note(tmp_path):
    state = nn.BatchNorm1d(2).half().state_dict()
    state["num_batches_tracked"] = torch.tensor(3.0, dtype=torch.float16)
    target = nn.BatchNorm1d(2)
    report = saved(state, tmp_path).restore(model=target)
    assert "dtype-changed" in codes(report)
    assert target.num_batches_tracked == 3
    state["num_batches_tracked"] = torch.tensor(3.5, dtype=torch.float16)
    with pytest.raises(holdtrue.RestoreError):
        saved(state, tmp_path).restore(model=target)
