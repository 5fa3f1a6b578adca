"""A file never causes an import or a call: forged recipes, each with a harmless canary."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import holdtrue
from holdtrue.limits import override

sys.path.insert(0, str(Path(__file__).parents[1] / "attacks" / "bait"))
import attack_package

from attacks.families.recipes import LINEAR, OWN, build, forged


@pytest.fixture
def forge(tmp_path, monkeypatch):
    """A checkpoint of a Linear whose recipe has been exchanged, sealed as the format wants it."""
    canary = tmp_path / "canary"
    monkeypatch.setenv("HOLDTRUE_CANARY", str(canary))
    attack_package.RAN.clear()

    def forge(node, **more):
        return holdtrue.open(forged(tmp_path / "forged", node, **more))

    yield forge
    assert not canary.exists()
    assert attack_package.RAN == []


def refused(checkpoint, *trusted):
    with pytest.raises(holdtrue.RestoreError) as caught:
        checkpoint.build(trust=trusted)
    return [f.code for f in caught.value.report.errors], str(caught.value)


def test_a_module_that_would_be_imported_stays_out(forge):
    refused(forge(build("attack_at_import.Net")), "attack_at_import")
    assert "attack_at_import" not in sys.modules


def test_classes_of_a_package_are_not_trusted_unasked(forge):
    codes, _ = refused(forge(build(f"{OWN}.Holder")))
    assert codes == ["class-not-trusted"]


@pytest.mark.parametrize("name", ["forward", "_parameters", "_modules", "factory", "__class__",
                                  "register_buffer", "training"])  # fmt: skip
def test_attributes_that_make_a_module_work_cannot_be_set(forge, name):
    codes, _ = refused(forge(build(f"{OWN}.Holder"), attributes={"": {name: 1}}), OWN)
    assert codes == ["recipe-damaged"]


@pytest.mark.parametrize("path", ["layer.deeper", "absent", "a.b"])
def test_paths_that_lead_nowhere(forge, path):
    codes, _ = refused(forge(LINEAR, modules={f"{path}.x": LINEAR}))
    assert codes == ["recipe-damaged"]


def test_nesting_is_bounded(forge):
    node = LINEAR
    for _ in range(90):
        node = build("torch.nn.modules.container.Sequential", node)
    codes, _ = refused(forge(node))
    assert codes == ["recipe-damaged"]


@pytest.mark.parametrize("node", [
    build("torch.nn.modules.transformer.TransformerEncoder",
          build("torch.nn.modules.transformer.TransformerEncoderLayer", 8, 2, 8), 10**9),
    build("torch.nn.modules.rnn.LSTM", 4, 4, 10**9),
], ids=["encoder", "lstm"])  # fmt: skip
def test_a_billion_layers_end_soon(forge, node):
    checkpoint = forge(node)
    with override(build_calls=5000):
        codes, _ = refused(checkpoint)
    assert codes == ["over-budget"]


def test_huge_layers_take_no_memory(forge):
    codes, _ = refused(forge(build("torch.nn.modules.linear.Linear", 1 << 20, 1 << 20)))
    assert codes == ["shape-mismatch"]


@pytest.mark.parametrize("args", [["x"], [-1, 2], [2], [None, None], [2.5, 2]])
def test_a_constructor_that_raises_is_a_finding(forge, args):
    codes, text = refused(forge(build("torch.nn.modules.linear.Linear", *args)))
    assert codes == ["build-failed"]
    assert "Linear" in text


def test_a_configuration_fetches_nothing(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    from holdtrue.restore.build import _harmless

    values = {
        "attn_implementation": "somebody/kernel",
        "_attn_implementation": "somebody/kernel:entry",
        "auto_map": {"AutoModel": "somebody/code--modeling.Net"},
        "quantization_config": {"quant_method": "custom"},
        "backbone_config": {"_attn_implementation_internal": "somebody/kernel"},
        "use_pretrained_backbone": True,
        "hidden_size": 32,
    }
    assert _harmless(values) == {
        "backbone_config": {}, "use_pretrained_backbone": False, "hidden_size": 32,
    }  # fmt: skip
    assert _harmless({"attn_implementation": "eager"}) == {"attn_implementation": "eager"}
    config = transformers.BertConfig.from_dict(_harmless(dict(values)))
    assert "/" not in str(config._attn_implementation)


class Evil:
    def __reduce__(self):
        return print, ("ran",)


def test_a_pickled_model_of_untrusted_parts_is_refused(tmp_path, capsys):
    model = nn.Sequential(nn.Linear(2, 2))
    model.evil = Evil()
    torch.save(model, tmp_path / "m.pt")
    with pytest.raises(holdtrue.RestoreError):
        holdtrue.open(tmp_path / "m.pt").build(trust=["builtins", __name__])
    assert capsys.readouterr().out == ""
