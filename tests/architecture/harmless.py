"""The table of what may be done to a model, its files or its process with no effect on its outputs:
nothing above a note may be said."""

import copy

import torch
from mutations import edit, live, put
from torch import nn


def _subclass(base, **members):
    return type(base.__name__ + "Plus", (base,), {"__module__": "net", **members})


def _become(module, cls):
    module.__class__ = cls


def _compiled(model):
    return torch.compile(model)


def _data_parallel(model):
    return nn.DataParallel(model)


def _run_once(model):
    model(torch.zeros(1, 1, 8, 8))


V, T = "Vision", "Text"
_HEAD = "        hidden = F.relu(pool(x))\n        return self.softmax(self.head(hidden))"
HARMLESS = [
    edit("nothing at all", V, "SCALE = 0.5", "SCALE = 0.5"),
    edit(
        "comment added",
        V,
        "    # the slope is small",
        "    # the slope\n    # is small, and stays so",
    ),
    edit("docstring changed", V, "Leaky, so that nothing dies.", "It leaks."),
    edit("local variable renamed", V, "hidden", "features"),
    edit(
        "argument of a helper renamed",
        V,
        "def scaled(factor):\n    def apply(x):\n        return x * factor",
        "def scaled(by):\n    def apply(x):\n        return x * by",
    ),
    edit(
        "lines broken otherwise",
        V,
        "return self.softmax(self.head(hidden))",
        "return self.softmax(\n    self.head(\n        hidden,\n    )\n)",
    ),
    edit(
        "brackets that change nothing",
        V,
        "return x + self.strength * y",
        "return x + (self.strength * y)",
    ),
    edit("quotes", V, 'TABLE["floor"]', "TABLE['floor']"),
    edit(
        "annotations", V, "def mix(self, x, y):", "def mix(self, x: Tensor, y: Tensor) -> Tensor:"
    ),
    edit("annotated assignment", V, "        out = self.act", "        out: Tensor = self.act"),
    edit("print in forward", V, _HEAD, "        print(x.shape)\n" + _HEAD),
    edit("assertion in forward", V, _HEAD, "        assert x.ndim == 4\n" + _HEAD),
    edit(
        "method added",
        V,
        "    def describe(self)",
        "    def more(self):\n        return 1\n\n    def describe(self)",
    ),
    edit("method that forward does not call", V, '{self.size} wide"', '{self.size} pixels wide"'),
    edit("attribute that forward does not read", V, "self.size = 8", "self.size = 16"),
    edit(
        "function that is not called",
        V,
        "def activation(",
        "def unused(x):\n    return x\n\n\ndef activation(",
    ),
    edit("import added", V, "import math\n", "import math\nimport json  # noqa: F401\n"),
    edit(
        "another spelling of a function", V, "F.relu(pool(x))", "torch.nn.functional.relu(pool(x))"
    ),
    edit(
        "constructor written otherwise",
        V,
        "self.alpha = 0.7",
        "alpha = 7 / 10\n        self.alpha = alpha",
    ),
    edit("number written otherwise", V, "SCALE = 0.5", "SCALE = 1 / 2"),
    edit("constant added", V, "SCALE = 0.5", "SCALE = 0.5\nOTHER = 3"),
    edit("unused class attribute", V, "expansion = 2", "expansion = 2\n    version = 3"),
    edit(
        "extra_repr",
        V,
        "    def describe(self)",
        "    def extra_repr(self):\n        return 'vision'\n\n    def describe(self)",
    ),
    edit("inplace activation", V, "inplace=False", "inplace=True"),
    live("train and eval", V, lambda m: m.eval()),
    live("eval of one module", V, lambda m: m.stem.eval()),
    live("DataParallel", V, _data_parallel),
    live("torch.compile", V, _compiled),
    live("a module compiled in place", V, lambda m: m.head.compile()),
    live("a copy", V, copy.deepcopy),
    live("after a forward", V, _run_once),
    live("gradients on", V, lambda m: [p.grad for p in m.parameters()]),
    live("channels last", V, lambda m: m.to(memory_format=torch.channels_last)),
    live(
        "subclass that adds methods",
        V,
        lambda m: _become(m, _subclass(type(m), more=lambda self: 1)),
    ),
    live("lazy layer before its first batch", V, put("head", lambda: nn.LazyLinear(3))),
    live(
        "subclass of a layer that adds methods",
        V,
        lambda m: _become(m.stem[2], _subclass(nn.ReLU, more=lambda self: 1)),
    ),
    live(
        "renamed class",
        V,
        lambda m: _become(
            m.body[0],
            type(
                "Renamed",
                (nn.Module,),
                {k: v for k, v in vars(type(m.body[0])).items() if k != "__dict__"},
            ),
        ),
    ),
    live("device as an attribute", V, lambda m: setattr(m, "device_name", "cuda:1")),
    live("backward hook", V, lambda m: m.head.register_full_backward_hook(lambda *a: None)),
    live("tied weights", T, lambda m: None),
    live(
        "llama in another attention kernel", "llama", lambda m: m.set_attn_implementation("eager")
    ),
    live("llama without a cache", "llama", lambda m: setattr(m.config, "use_cache", False)),
    live("llama with a name", "llama", lambda m: setattr(m.config, "_name_or_path", "/data/llama")),
    live("labels of a bert", "bert", lambda m: setattr(m.config, "id2label", {0: "no", 1: "yes"})),
    live("gradient checkpointing", "bert", lambda m: m.gradient_checkpointing_enable()),
    live(
        "dropout of a model in eval",
        "bert",
        lambda m: setattr(m.encoder.layer[0].output.dropout, "p", 0.4),
    ),
    live("a llama that ran", "llama", lambda m: m(input_ids=torch.tensor([[1, 2, 3]]))),
]
