"""A file never causes an import or a call: forged recipes, each with a harmless canary."""

import sys
from pathlib import Path

import msgspec
import pytest
import torch
from torch import nn

import holdtrue
from holdtrue.limits import override
from holdtrue.records.manifest import decode_manifest, encode_manifest
from holdtrue.records.recipe import Rebuild, Recipe

sys.path.insert(0, str(Path(__file__).parent))
import attack_package

OWN = "attack_package"


@pytest.fixture
def forge(tmp_path, monkeypatch):
    """A checkpoint of a Linear whose recipe has been exchanged, sealed as the format wants it."""
    canary = tmp_path / "canary"
    monkeypatch.setenv("HOLDTRUE_CANARY", str(canary))
    attack_package.RAN.clear()

    def forge(node, **more):
        place = tmp_path / "forged"
        holdtrue.save(place, model=nn.Linear(2, 2), overwrite=True)
        manifest = decode_manifest((place / "manifest.json").read_bytes(), "")
        recipe = Recipe(via="signature", node=node, **more)
        part = msgspec.structs.replace(manifest.parts["model"], rebuild=Rebuild(recipe=recipe))
        manifest = msgspec.structs.replace(manifest, parts={**manifest.parts, "model": part})
        (place / "manifest.json").write_bytes(encode_manifest(manifest))
        return holdtrue.open(place)

    yield forge
    assert not canary.exists()
    assert attack_package.RAN == []


def build(name, *args, **kwargs):
    return {"$": "build", "v": {"class": name, "args": list(args), "kwargs": kwargs}}


LINEAR = build("torch.nn.modules.linear.Linear", 2, 2)
TOUCH = "touch $HOLDTRUE_CANARY"

# What a forged recipe names as a module → the finding, when the package is trusted
CALLS = {
    "os.system": (build("os.system", TOUCH), "class-not-trusted"),
    "posix.system": (build("posix.system", TOUCH), "class-not-trusted"),
    "builtins.eval": (build("builtins.eval", "open('x', 'w')"), "class-not-trusted"),
    "builtins.exec": (build("builtins.exec", "import this"), "class-not-trusted"),
    "subprocess.Popen": (build("subprocess.Popen", ["touch", "x"]), "class-not-trusted"),
    "torch.load": (build("torch.load", "x"), "class-not-trusted"),
    "torch.hub.load": (build("torch.hub.load", "x"), "class-not-trusted"),
    "a class with a side effect in __init__": (build(f"{OWN}.Plain"), "class-not-a-module"),
    "a class with a metaclass": (build(f"{OWN}.WithMeta"), "class-not-a-module"),
    "a property": (build(f"{OWN}.Holder.touched"), "class-not-trusted"),
    "a factory": (build(f"{OWN}.Holder.factory"), "class-not-trusted"),
    "__class_getitem__": (build(f"{OWN}.Item[1]"), "class-missing"),
    "__getattr__ of a module": (build(f"{OWN}.absent"), "class-missing"),
    "__getattr__ of an instance": (build(f"{OWN}.lurking.Linear"), "class-missing"),
    "an instance that claims to be a class": (build(f"{OWN}.lurking"), "class-not-trusted"),
    "a function as a module": (build(f"{OWN}.function"), "class-not-trusted"),
    "a module not yet imported": (build("attack_at_import.Net"), "class-missing"),
    "a submodule not yet imported": (build(f"{OWN}.sub.Net"), "class-missing"),
    "nothing": (build(""), "class-missing"),
    "dots": (build("..."), "class-missing"),
    "a module of torch.nn that is no layer": (
        build("torch.nn.modules.module._IncompatibleKeys"), "class-not-trusted"),
}  # fmt: skip

ARGUMENTS = {
    "os.system as an activation": ({"$": "function", "v": "os.system"}, "class-not-trusted"),
    "what a trusted module imported": (
        {"$": "function", "v": f"{OWN}.system"}, "class-not-trusted"),
    "eval as an activation": ({"$": "function", "v": "builtins.eval"}, "class-not-trusted"),
    "torch.load as an activation": ({"$": "function", "v": "torch.load"}, "class-not-trusted"),
    "a helper of torch.nn.functional": (
        {"$": "function", "v": "torch.nn.functional.handle_torch_function"}, "class-not-trusted"),
    "a module of torch.nn.functional": (
        {"$": "function", "v": "torch.nn.functional.warnings"}, "class-not-trusted"),
    "a partial of os.system": (
        {"$": "partial", "v": {"of": {"$": "function", "v": "os.system"}, "args": [TOUCH],
                               "kwargs": {}}}, "class-not-trusted"),
    "an object of a class that nobody trusts": (
        {"$": "object", "class": "pathlib.Path", "via": "dict", "state": {}}, "class-not-trusted"),
    "a class that nobody trusts": ({"$": "class", "v": "subprocess.Popen"}, "class-not-trusted"),
    "a configuration that is none": (
        {"$": "config", "v": {"class": f"{OWN}.Plain", "values": {}}}, "class-not-a-module"),
    "a callable node": ({"$": "callable", "v": "os.system"}, "class-not-trusted"),
    "a partial of no function": (
        {"$": "partial", "v": {"of": 3, "args": [], "kwargs": {}}}, "recipe-damaged"),
    "an unknown kind": ({"$": "call", "v": "os.system"}, "recipe-damaged"),
    "a tensor of the checkpoint": ({"$": "tensor", "v": "model/weight"}, "recipe-damaged"),
    "a reference to nothing": ({"$": "build"}, "recipe-damaged"),
    "a shape that cannot be": (
        {"$": "empty", "v": {"dtype": "float32", "shape": [1 << 50, 1 << 50]}}, "recipe-damaged"),
    "a dtype that is none": ({"$": "empty", "v": {"dtype": "load", "shape": [1]}},
                             "recipe-damaged"),
    "an inline tensor that is too short": (
        {"$": "inline", "v": {"dtype": "float32", "shape": [9], "data": ""}}, "recipe-damaged"),
    "base64 that is none": (
        {"$": "inline", "v": {"dtype": "float32", "shape": [1], "data": "?"}}, "recipe-damaged"),
}  # fmt: skip


def refused(checkpoint, *trusted):
    with pytest.raises(holdtrue.RestoreError) as caught:
        checkpoint.build(trust=trusted)
    return [f.code for f in caught.value.report.errors], str(caught.value)


@pytest.mark.parametrize("what", CALLS)
def test_what_is_named_as_a_module_is_not_called(forge, what, figure):
    node, code = CALLS[what]
    codes, text = refused(forge(node), OWN)
    assert codes == [code]
    assert "weights_only=False" not in text
    figure("forged recipes refused")


@pytest.mark.parametrize("what", ARGUMENTS)
def test_what_is_named_as_an_argument_is_not_called(forge, what, figure):
    node, code = ARGUMENTS[what]
    codes, _ = refused(forge(build(f"{OWN}.Holder", node)), OWN)
    assert codes == [code]
    figure("forged recipes refused")


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
