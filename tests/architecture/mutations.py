"""The table of what is done to a model, and what a restore then has to say.

`old` → `new` is an edit of a file of `project/`; `change` does something to the live model. `code`
is the finding, `where` its place or the end of it. "nothing" are changes that a record cannot see.
"""

import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations


@dataclass(frozen=True)
class Case:
    name: str
    model: str  # a class of project/net.py, or a builder in `MODELS`
    old: str = ""
    new: str = ""
    file: str = "net.py"
    change: Callable[[nn.Module], object] | None = None
    code: str = "architecture-changed"
    where: str = "model"
    severity: str = "error"


def edit(
    name,
    model,
    old,
    new,
    code="architecture-changed",
    where="model",
    severity="error",
    file="net.py",
):
    return Case(name, model, old, new, file, None, code, where, severity)


def live(name, model, change, code="architecture-changed", where="model", severity="error"):
    return Case(name, model, change=change, code=code, where=where, severity=severity)


def assign(path, value):
    def change(model):
        *parents, last = path.split(".")
        owner = model
        for name in parents:
            owner = owner[int(name)] if name.isdigit() else getattr(owner, name)
        setattr(owner, last, value)

    return change


def put(path, module):
    def change(model):
        parent, _, last = path.rpartition(".")
        model.get_submodule(parent)._modules[last] = module()

    return change


def _patched(self, x, scale=1.0):
    return type(self).forward(self, x, scale) * 3


def _double(module, arguments, output):
    return output * 2


def _untie(model):
    model.out.weight = nn.Parameter(model.out.weight.detach().clone())


def _swap(model):
    children = model.stem._modules
    model.stem._modules = {k: children[k] for k in ("1", "0", "2", "3", "4")}


V, T = "Vision", "Text"
FOUND = [
    edit("activation module", V, "nn.ReLU(inplace=False)", "nn.GELU()", where="model/stem.2"),
    edit(
        "activation held as a function",
        V,
        'act: str = "relu"',
        'act: str = "gelu"',
        where="model/body.0.act",
    ),
    edit("activation in forward", V, "F.relu(pool(x))", "F.gelu(pool(x))", "code-changed"),
    edit(
        "eps of a norm",
        V,
        "[width, 8, 8], eps=1e-5",
        "[width, 8, 8], eps=1e-3",
        where="model/norm.eps",
    ),
    edit(
        "eps of a batch norm",
        V,
        "eps=1e-5, momentum",
        "eps=1e-3, momentum",
        where="model/body.0.norm.eps",
    ),
    edit(
        "momentum of a batch norm",
        V,
        "momentum=0.1",
        "momentum=0.01",
        where="model/body.0.norm.momentum",
        severity="warning",
    ),
    edit(
        "padding",
        V,
        "nn.Conv2d(1, width, 3, padding=1",
        "nn.Conv2d(1, width, 3, padding=0",
        where="model/stem.0.padding",
    ),
    edit(
        "padding mode",
        V,
        "dilation=1",
        "dilation=1, padding_mode='reflect'",
        where="model/stem.0.padding_mode",
    ),
    edit("stride", V, "stride=1", "stride=2", where="model/body.0.conv.stride"),
    edit("dilation", V, "dilation=1", "dilation=2", where="model/stem.0.dilation"),
    edit("groups", V, "groups=1", "groups=2", where="model/body.0.conv.groups"),
    edit(
        "groups of a group norm",
        V,
        "nn.GroupNorm(2,",
        "nn.GroupNorm(4,",
        where="model/stem.1.num_groups",
    ),
    edit(
        "affine dropped",
        V,
        "nn.GroupNorm(2, width)",
        "nn.GroupNorm(2, width, affine=False)",
        "unexpected-keys",
        "model/stem.1.weight",
    ),
    edit(
        "kind of norm",
        V,
        "nn.BatchNorm2d(width, eps=1e-5, momentum=0.1)",
        "nn.InstanceNorm2d(width, affine=True, track_running_stats=True)",
        where="model/body.0.norm",
    ),
    edit("kind of pooling", V, "nn.AvgPool2d(2)", "nn.MaxPool2d(2)", where="model/stem.3"),
    edit(
        "pooling size",
        V,
        "nn.AvgPool2d(2)",
        "nn.AvgPool2d(2, stride=1)",
        where="model/stem.3.stride",
    ),
    edit(
        "inplace",
        V,
        "inplace=False",
        "inplace=True",
        "setting-differs",
        "model/stem.2.inplace",
        "note",
    ),
    edit(
        "p of a dropout, in training",
        V,
        "nn.Dropout(0.1)",
        "nn.Dropout(0.5)",
        where="model/stem.4.p",
        severity="warning",
    ),
    edit("bias dropped", V, "bias=True", "bias=False", "unexpected-keys", "model/stem.0.bias"),
    edit("interpolation mode", V, '"nearest"', '"bilinear"', where="model/up.mode"),
    edit(
        "softmax over another dim",
        V,
        "nn.Softmax(dim=1)",
        "nn.Softmax(dim=0)",
        where="model/softmax.dim",
    ),
    edit(
        "module added",
        V,
        "nn.Dropout(0.1),",
        "nn.Dropout(0.1),\n            nn.Tanh(),",
        where="model/stem.5",
    ),
    edit(
        "module removed",
        V,
        "            nn.AvgPool2d(2),\n            nn.Dropout(0.1),\n",
        "            nn.AvgPool2d(2),\n",
        where="model/stem.4",
    ),
    edit(
        "layers in another order",
        V,
        "nn.ReLU(inplace=False),\n            nn.AvgPool2d(2),",
        "nn.AvgPool2d(2),\n            nn.ReLU(inplace=False),",
        where="model/stem.2",
    ),
    live("children in another order", V, _swap, where="model/stem"),
    edit(
        "residual removed",
        V,
        "return x + self.strength * y",
        "return self.strength * y",
        "code-changed",
        "model/body.0",
    ),
    edit(
        "order of calls in forward",
        V,
        "self.norm(self.up(x))",
        "self.up(self.norm(x))",
        "code-changed",
    ),
    edit("operator in forward", V, "x - self.mean", "x + self.mean", "code-changed"),
    edit(
        "method that forward calls",
        V,
        "x + self.strength * y",
        "x - self.strength * y",
        "code-changed",
        "model/body.0",
    ),
    edit(
        "property that forward reads",
        V,
        "self.alpha * 2",
        "self.alpha * 3",
        "code-changed",
        "model/body.0",
    ),
    edit("helper function", V, "F.leaky_relu(x, slope)", "F.elu(x, slope)", "code-changed"),
    edit(
        "helper in another file",
        V,
        "return x * squashed(x)",
        "return x + squashed(x)",
        "code-changed",
        file="shaping.py",
    ),
    edit(
        "helper of a helper",
        V,
        "torch.sigmoid(x)",
        "torch.tanh(x)",
        "code-changed",
        file="shaping.py",
    ),
    edit(
        "another function imported under the name",
        V,
        "from shaping import gate, pool",
        "from shaping import pool, squashed as gate",
        "code-changed",
    ),
    edit(
        "default argument of a helper",
        V,
        "slope: float = 0.1",
        "slope: float = 0.3",
        "code-changed",
    ),
    edit(
        "default argument of forward", V, "scale: float = 1.0", "scale: float = 2.0", "code-changed"
    ),
    edit("global constant", V, "SCALE = 0.5", "SCALE = 0.25", "code-changed"),
    edit("global table", V, '"floor": 0.01', '"floor": 0.1', "code-changed"),
    edit(
        "constant in another file",
        V,
        "POWER = 1.0",
        "POWER = 2.0",
        "code-changed",
        file="shaping.py",
    ),
    edit("class attribute", V, "expansion = 2", "expansion = 4", "code-changed", "model/body.0"),
    edit(
        "number held as an attribute",
        V,
        "self.alpha = 0.7",
        "self.alpha = 0.9",
        where="model/body.0.alpha",
    ),
    edit(
        "lambda held as an attribute",
        V,
        "x.clamp(-5, 5)",
        "x.clamp(-1, 1)",
        where="model/body.0.squash",
    ),
    edit("value in a closure", V, "scaled(1.5)", "scaled(1.25)", where="model/body.0.gain"),
    edit(
        "buffer no longer persistent",
        V,
        "torch.zeros(1))",
        "torch.zeros(1), persistent=False)",
        "persistence-changed",
        "model.mean",
        "warning",
    ),
    edit(
        "plain tensor",
        V,
        "torch.arange(3.0)",
        "torch.ones(3)",
        "tensor-unregistered",
        "model.extra",
        "warning",
    ),
    edit(
        "list of modules that is not registered",
        V,
        "nn.ModuleList([Residual(width), Residual(width)])",
        "[Residual(width), Residual(width)]",
        "modules-unregistered",
        "model.body",
        "warning",
    ),
    live(
        "forward replaced on the object",
        V,
        lambda m: setattr(m, "forward", types.MethodType(_patched, m)),
        where="model.forward",
    ),
    live(
        "forward replaced on a submodule's class",
        V,
        lambda m: setattr(type(m.body[0]), "mix", lambda self, x, y: y),
        "code-changed",
        "model/body.0",
    ),
    live(
        "hook added",
        V,
        lambda m: m.head.register_forward_hook(_double),
        where="model/head.forward hooks",
    ),
    live(
        "parametrization added",
        V,
        lambda m: parametrizations.weight_norm(m.head),
        where="model/head.weight parametrizations",
    ),
    live("attribute set on the object", V, assign("body.1.alpha", 0.1), where="model/body.1.alpha"),
    live("activation replaced on the object", V, put("stem.2", nn.SiLU), where="model/stem.2"),
    live(
        "dtype",
        V,
        lambda m: m.head.half(),
        "dtype-narrowed",
        "model/head.bias: largest change 8.84e-05",
    ),
    live(
        "frozen parameter",
        V,
        lambda m: m.head.requires_grad_(False),
        "requires-grad-restored",
        "model/head.weight: requires_grad=True",
        "note",
    ),
    live(
        "function replaced by a function of torch",
        V,
        assign("body.0.squash", torch.tanh),
        where="model/body.0.squash",
    ),
    live(
        "function replaced by a partial one",
        V,
        assign("body.0.act", F.hardtanh),
        where="model/body.0.act",
    ),
    edit("heads", T, "num_heads=2", "num_heads=4", where="model/attend.num_heads"),
    edit(
        "batch first",
        T,
        "num_layers=1, batch_first=True",
        "num_layers=1, batch_first=False",
        where="model/rnn.batch_first",
    ),
    edit(
        "bidirectional",
        T,
        "num_layers=1,",
        "num_layers=1, bidirectional=True, proj_size=4,",
        where="model/rnn.bidirectional",
    ),
    edit("number of layers", T, "num_layers=1", "num_layers=2", where="model/rnn.num_layers"),
    edit("padding index", T, "padding_idx=0", "padding_idx=1", where="model/embed.padding_idx"),
    edit(
        "largest norm of an embedding",
        T,
        "max_norm=None",
        "max_norm=1.0",
        where="model/embed.max_norm",
    ),
    edit(
        "gradients by frequency",
        T,
        "max_norm=None",
        "max_norm=None, scale_grad_by_freq=True",
        where="model/embed.scale_grad_by_freq",
        severity="warning",
    ),
    edit(
        "flag for the attention mask",
        T,
        "self.causal = True",
        "self.causal = False",
        where="model.causal",
    ),
    edit("mask in forward", T, ".triu(1)", ".triu(2)", "code-changed"),
    edit("scale of the embedding", T, "math.sqrt(width)", "1.0", where="model.root"),
    live("tie lost", T, _untie, "tie-restored", "model/out.weight", "warning"),
    live(
        "eps in a llama",
        "llama",
        assign("norm.variance_epsilon", 1e-3),
        where="model/norm.variance_epsilon",
    ),
    live(
        "activation in a bert",
        "bert",
        assign("encoder.layer.0.intermediate.intermediate_act_fn", nn.ReLU()),
        where="model/encoder.layer.0.intermediate.intermediate_act_fn",
    ),
    live(
        "activation function in a gpt2",
        "gpt2",
        lambda m: setattr(m.h[0].mlp, "act", nn.Tanh()),
        where="model/h.0.mlp.act",
    ),
    live(
        "scaling of attention in a llama",
        "llama",
        assign("layers.0.self_attn.scaling", 0.1),
        where="model/layers.0.self_attn.scaling",
    ),
    live(
        "causal flag in a llama",
        "llama",
        assign("layers.0.self_attn.is_causal", False),
        where="model/layers.0.self_attn.is_causal",
    ),
    live(
        "field of a config",
        "llama",
        lambda m: setattr(m.config, "rope_parameters", {"rope_theta": 5e5, "rope_type": "default"}),
        where="model.config.rope_parameters.rope_theta",
    ),
    live(
        "heads in a config",
        "llama",
        lambda m: setattr(m.config, "num_attention_heads", 4),
        where="model.config.num_attention_heads",
    ),
    live(
        "attention dropout of a bert",
        "bert",
        assign("encoder.layer.1.attention.self.dropout.p", 0.3),
        "setting-differs",
        "model/encoder.layer.1.attention.self.dropout.p",
        "note",
    ),
    live(
        "class of a norm in a vit",
        "vit",
        put("layernorm", lambda: nn.RMSNorm(16)),
        where="model/layernorm",
    ),
]


def _library_patched(model, monkeypatch):
    """torch's own function, replaced for the whole process."""
    monkeypatch.setattr(F, "layer_norm", lambda x, *rest: x * 2)


def _environment(model, monkeypatch):
    monkeypatch.setenv("NET_GAIN", "3")


def _file(model, monkeypatch):
    (Path(model.folder()) / "gain.txt").write_text("3")


def _big_constant(model, monkeypatch):
    model.grid = model.grid + 1


def _name_made_up(model, monkeypatch):
    monkeypatch.setitem(model.namespace(), "GAIN", 3.0)


def _registry(model, monkeypatch):
    """A table of installed code, through which forward finds its function."""
    import transformers.modeling_utils as modeling

    def kernel(module, query, key, value, *rest, **more):
        return value.transpose(1, 2) * 2, None

    monkeypatch.setitem(modeling.ALL_ATTENTION_FUNCTIONS, "sdpa", kernel)


def unseen(name, model, change, inputs):
    return Unseen(name, model, change, inputs)


@dataclass(frozen=True)
class Unseen:
    """What no record of the model itself can show: only running it does, as a probe."""

    name: str
    model: str
    change: Callable
    inputs: Callable[[], dict]
    expected: str = "probe-different"


def _vector():
    return {"x": torch.linspace(-1, 1, 8).reshape(2, 4)}


def _tokens():
    return {"input_ids": torch.tensor([[1, 2, 3]])}


UNSEEN = [
    unseen("function of torch patched", "Outside", _library_patched, _vector),
    unseen("environment variable read in forward", "Outside", _environment, _vector),
    unseen("file read in forward", "Outside", _file, _vector),
    unseen("values of a plain tensor above 1 MiB", "Outside", _big_constant, _vector),
    unseen("global found under a name made up at run time", "Outside", _name_made_up, _vector),
    unseen("entry of a library's table of functions", "llama", _registry, _tokens),
]
