"""A state dict and a model whose names differ: the call that is printed is the one that works."""

import re

import pytest
import torch
from fitting import codes, command_of, fill, run, same, saved
from torch import nn
from torch.nn.utils import weight_norm as old_weight_norm
from torch.nn.utils.parametrizations import weight_norm
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import holdtrue


class Net(nn.Module):
    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
        self.fc = nn.Linear(4, classes)


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = Net()


def changed(state: dict, *pairs: tuple[str, str]) -> dict:
    made = {}
    for name, tensor in state.items():
        for old, new in pairs:
            name = re.sub(old, new, name)
        made[name] = tensor
    return made


# What is done by itself: how the file's names are made of the model's, and what is said.
BY_ITSELF = {
    "as they are": ([], set()),
    "data parallel": ([("^", "module.")], {"prefix-removed"}),
    "stacked": ([("^", "module._orig_mod.")], {"prefix-removed"}),
    "compiled inside": ([(r"^stem\.", "stem._orig_mod.")], {"prefix-removed"}),
    "fsdp inside": (
        [("^", "_fsdp_wrapped_module."), (r"body\.0\.", "body.0._checkpoint_wrapped_module.")],
        {"prefix-removed"},
    ),
    "any attribute": ([("^", "backbone_net.")], {"prefix-removed"}),
}


@pytest.mark.parametrize("case", BY_ITSELF)
def test_what_loses_nothing_is_done_by_itself(case, tmp_path):
    pairs, expected = BY_ITSELF[case]
    model, target = fill(Net()), Net().eval()
    path = saved(changed(model.state_dict(), *pairs), tmp_path)
    report = holdtrue.diagnose(path, model=target)
    assert not codes(report, "error", "warning")
    assert codes(report) == expected | ({"restore-call"} if expected else set())
    done = run(command_of(report) or f"holdtrue.open({path!r}).restore(model=model)", target)
    assert codes(done) >= expected
    assert same(target, model.state_dict())


def test_the_saved_model_as_a_child_of_the_target(tmp_path):
    holder = fill(Holder())
    target = Holder()
    path = saved(holder.backbone.state_dict(), tmp_path)
    assert "prefix-added" in codes(holdtrue.open(path).restore(model=target))
    assert same(target, holder.state_dict())


# What is proposed: how the names were changed, and the patterns that bring them back.
PROPOSED = {
    "modules renamed": (
        [("^stem", "features"), ("^fc", "head")],
        {"features.*": "stem.*", "head.*": "fc.*"},
    ),
    "numbered otherwise": (
        [(r"^stem\.0", "conv1"), (r"^stem\.1", "bn1"), (r"^body\.0", "conv2"),
         (r"^body\.1", "bn2")],
        {"conv1.*": "stem.0.*", "bn1.*": "stem.1.*", "conv2.*": "body.0.*", "bn2.*": "body.1.*"},
    ),
    "gamma and beta": (
        [(r"1\.weight$", "1.gamma"), (r"1\.bias$", "1.beta")],
        {"*.gamma": "*.weight", "*.beta": "*.bias"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PROPOSED)
def test_renames_are_found_and_told(case, tmp_path):
    pairs, patterns = PROPOSED[case]
    model, target = fill(Net()), Net()
    path = saved(changed(model.state_dict(), *pairs), tmp_path)
    before = {n: t.clone() for n, t in target.state_dict().items()}
    report = holdtrue.diagnose(path, model=target)
    assert codes(report, "error") == {"names-differ"}
    assert same(target, before)
    command = command_of(report)
    assert eval(command.partition("rename=")[2].removesuffix(")")) == patterns
    with pytest.raises(holdtrue.RestoreError) as caught:
        holdtrue.open(path).restore(model=target)
    assert {f.command for f in caught.value.report.errors} == {command}
    assert same(target, before)
    assert run(command, target).ok
    assert same(target, model.state_dict())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("back", [False, True])
def test_weight_norm_both_ways(back, tmp_path):
    def build(norm):
        return nn.Sequential(norm(nn.Linear(4, 5)), nn.ReLU(), norm(nn.Linear(5, 5)))

    writer, reader = (weight_norm, old_weight_norm)[:: 1 if back else -1]
    model, target = fill(build(writer)), build(reader)
    path = saved(model.state_dict(), tmp_path)
    report = holdtrue.diagnose(path, model=target)
    assert codes(report, "error", "warning") == {"names-differ"}
    run(command_of(report), target)
    values = zip(target.state_dict().items(), model.state_dict().items(), strict=True)
    ends = {"weight_g": "original0", "weight_v": "original1"}
    ends |= {new: old for old, new in ends.items()}
    for (name, tensor), (other, expected) in values:
        last = other.rpartition(".")[2]
        assert name.endswith(ends.get(last, last))
        assert torch.equal(tensor, expected)


def bert(classes: int = 2) -> BertConfig:
    return BertConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
                      intermediate_size=12, vocab_size=20, max_position_embeddings=6,
                      num_labels=classes)  # fmt: skip


def test_a_base_model_and_one_with_a_head(tmp_path):
    whole = fill(BertForSequenceClassification(bert()))
    path = saved(whole.state_dict(), tmp_path)
    base = BertModel(bert())
    report = holdtrue.diagnose(path, model=base)
    assert codes(report, "error") == {"names-differ", "unexpected-keys"}
    run(command_of(report), base)
    assert same(base, whole.bert.state_dict())
    path = saved(whole.bert.state_dict(), tmp_path)
    target = BertForSequenceClassification(bert())
    head = target.classifier.weight.detach().clone()
    report = holdtrue.diagnose(path, model=target)
    assert codes(report, "error") == {"names-differ", "missing-keys"}
    run(command_of(report), target)
    assert same(target.bert, whole.bert.state_dict())
    assert torch.equal(target.classifier.weight, head)


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(hidden_size=8, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, intermediate_size=12, vocab_size=20)
    )  # fmt: skip


def test_a_model_that_peft_wrapped(tmp_path):
    model, target = fill(llama()), llama()
    state = changed(
        model.state_dict(),
        ("^", "base_model.model."),
        (r"q_proj\.weight", "q_proj.base_layer.weight"),
    )
    lora = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    path = saved({**state, lora: torch.ones(2, 8)}, tmp_path)
    report = holdtrue.diagnose(path, model=target)
    assert codes(report, "error") == {"names-differ", "unexpected-keys"}
    run(command_of(report), target)
    assert same(target, model.state_dict())
    path = saved({lora: torch.ones(2, 8)}, tmp_path)
    assert codes(holdtrue.diagnose(path, model=target), "error") == {"adapter-only"}


def test_two_models_of_one_kind_are_asked_about(tmp_path):
    student, teacher = fill(Net(), 1).state_dict(), fill(Net(), 2).state_dict()
    path = saved(
        changed(student, ("^", "student.")) | changed(teacher, ("^", "teacher.")), tmp_path
    )
    target = Net()
    report = holdtrue.diagnose(path, model=target)
    (error,) = report.errors
    assert error.code == "state-dict-ambiguous"
    assert "student." in error.why
    assert "teacher." in error.why
    run(error.command, target)
    assert same(target, student)


def test_a_file_of_another_architecture_is_one_finding_without_a_call(tmp_path):
    path = saved({"a": torch.ones(7, 7), "b": torch.ones(9)}, tmp_path)
    report = holdtrue.diagnose(path, model=Net())
    assert codes(report, "error") == {"nothing-restored"}
    assert command_of(report) == ""


def test_what_is_missing_says_whether_it_matters(tmp_path):
    state = {n: t for n, t in fill(Net()).state_dict().items() if "running" not in n}
    state = {n: t for n, t in state.items() if "num_batches" not in n}
    report = holdtrue.diagnose(saved(state, tmp_path), model=Net())
    (statistics,) = report.errors
    assert "other outputs" in statistics.why
    (counters,) = [f for f in report.findings if f.code == "buffers-kept"]
    assert all(place.endswith("num_batches_tracked") for place in counters.places)


def test_layers_that_one_side_lacks_are_counted(tmp_path):
    def build(depth):
        made = nn.Module()
        made.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(depth))
        return made

    path = saved(build(4).state_dict(), tmp_path)
    (error,) = holdtrue.diagnose(path, model=build(2)).errors
    assert error.code == "unexpected-keys"
    assert "has 4 layers below 'blocks.', the model 2" in error.why


@pytest.mark.parametrize(
    "build", [Net, lambda: BertModel(bert()), llama, lambda: nn.Transformer(8, 2, 1, 1, 12)]
)
def test_a_file_and_its_own_model_give_nothing_above_a_note(build, tmp_path):
    path = saved(build().state_dict(), tmp_path)
    for target in (build(), build):
        report = holdtrue.diagnose(path, model=target)
        assert not codes(report, "error", "warning")
        assert "restore-call" not in codes(report)
