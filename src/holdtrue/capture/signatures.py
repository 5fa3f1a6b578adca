"""Constructor arguments read off a live module, where nobody recorded them.

torch's own layers keep most arguments as attributes of the same name, and so do most users'. What
is found is only a candidate: it counts once a module built from it has proved to be the same.
"""

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from holdtrue.records.trust import class_name

_ABSENT: Any = object()
_PLACEMENT = frozenset({"device", "dtype"})  # of the tensors, which the checkpoint itself knows


class Arguments:
    """Positional and keyword arguments for one constructor."""

    def __init__(self, args: list[Any], kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs


class NoRecipeError(Exception):
    """A module that cannot be built again; the message says why."""


def match_signature(module: nn.Module) -> Arguments:
    """Arguments for `type(module)`. Raises NoRecipeError where one is nowhere to be found."""
    if "parametrizations" in module._modules:
        raise NoRecipeError("a weight was parametrized after the constructor ran")
    rule = next((r for c in type(module).__mro__ if (r := _OWN.get(class_name(c)))), None)
    if rule is not None and type(module).__init__ is _owner(type(module)).__init__:
        return rule(module)
    try:
        parameters = list(inspect.signature(type(module).__init__).parameters.values())[1:]
    except (TypeError, ValueError):
        raise NoRecipeError(f"{type(module).__name__} has no readable signature") from None
    return _match(module, parameters)


def _owner(cls: type) -> Any:
    return next(c for c in cls.__mro__ if class_name(c) in _OWN)


def _match(module: nn.Module, parameters: list[inspect.Parameter]) -> Arguments:
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for parameter in parameters:
        value = attribute(module, parameter)
        if parameter.kind is parameter.VAR_POSITIONAL:
            if value is not _ABSENT:
                # Everything before must be given by position then.
                args += [*kwargs.values(), *(_elements(value))]
                kwargs = {}
        elif parameter.kind is parameter.VAR_KEYWORD:
            if isinstance(value, dict):
                kwargs.update(value)
        elif value is _ABSENT or parameter.name in _PLACEMENT:
            if parameter.default is parameter.empty:
                raise NoRecipeError(
                    f"{type(module).__name__} takes {parameter.name!r}, and keeps no attribute of "
                    "this name: decorate the class with @holdtrue.buildable"
                )
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            args.append(value)
        else:
            kwargs[parameter.name] = value
    return Arguments(args, kwargs)


def attribute(module: nn.Module, parameter: inspect.Parameter) -> Any:
    """The value that an argument seems to have had. Properties are not asked: they are code."""
    for name in (parameter.name, f"_{parameter.name}", parameter.name.rstrip("_")):
        for place in (vars(module), module._modules, module._parameters, module._buffers):
            if name in place:
                value = place[name]
                flag = isinstance(parameter.default, bool) and not isinstance(value, bool)
                if flag and place is not vars(module):
                    return value is not None  # Linear(bias=True) keeps a parameter called bias
                return _as_given(parameter, value) if isinstance(value, nn.Module) else value
    return _ABSENT


def _as_given(parameter: inspect.Parameter, module: nn.Module) -> Any:
    """What was passed where a module stands now: the module, its class, or its one number."""
    default, annotation = parameter.default, str(parameter.annotation).lower()
    if parameter.kind is parameter.VAR_POSITIONAL:
        return module
    given = default is not parameter.empty
    if (given and isinstance(default, type)) or annotation.startswith(("type[", "typing.type[")):
        return type(module)  # `act=nn.ReLU` that became `self.act = act()`
    number = (given and isinstance(default, int | float)) or parameter.annotation in (int, float)
    if number and isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p
    return _ABSENT if number or isinstance(default, str) else module


def _elements(value: Any) -> list[Any]:
    if isinstance(value, nn.ModuleList | nn.Sequential):
        return list(value._modules.values())
    if isinstance(value, nn.ModuleDict):
        return [dict(value._modules)]
    return list(value) if isinstance(value, list | tuple) else [value]


# -- torch's own classes whose attributes do not say it ------------------------------------------


def _sequential(module: Any) -> Arguments:
    names = list(module._modules)
    children = list(module._modules.values())
    if any(child is None for child in children):
        raise NoRecipeError("a place of a Sequential is empty")
    if names == [str(i) for i in range(len(names))]:
        return Arguments(children, {})
    return Arguments([dict(module._modules)], {})


def _module_list(module: Any) -> Arguments:
    names = list(module._modules)
    if names != [str(i) for i in range(len(names))] or None in module._modules.values():
        raise NoRecipeError("a ModuleList whose places are not 0, 1, 2, …")
    return Arguments([list(module._modules.values())], {})


def _module_dict(module: Any) -> Arguments:
    return Arguments([dict(module._modules)], {})


def _parameter_list(module: Any) -> Arguments:
    return Arguments([list(module._parameters.values())], {})


def _parameter_dict(module: Any) -> Arguments:
    return Arguments([dict(module._parameters)], {})


def _recurrent(module: Any) -> Arguments:
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout",
             "bidirectional")  # fmt: skip
    kwargs = {name: getattr(module, name) for name in names}
    if getattr(module, "proj_size", 0):
        kwargs["proj_size"] = module.proj_size
    if type(module) is nn.RNN:
        kwargs["nonlinearity"] = module.nonlinearity
    return Arguments([], kwargs)


def _cell(module: Any) -> Arguments:
    kwargs = {n: getattr(module, n) for n in ("input_size", "hidden_size", "bias")}
    if isinstance(module, nn.RNNCell):
        kwargs["nonlinearity"] = module.nonlinearity
    return Arguments([], kwargs)


def _attention(module: Any) -> Arguments:
    names = ("embed_dim", "num_heads", "dropout", "add_zero_attn", "kdim", "vdim", "batch_first")
    kwargs = {name: getattr(module, name) for name in names}
    kwargs["bias"] = module.in_proj_bias is not None
    kwargs["add_bias_kv"] = module.bias_k is not None
    return Arguments([], kwargs)


def _transformer_layer(module: Any) -> Arguments:
    kwargs = {
        "d_model": module.self_attn.embed_dim,
        "nhead": module.self_attn.num_heads,
        "dim_feedforward": module.linear1.out_features,
        "dropout": module.dropout.p,
        "activation": module.activation,
        "layer_norm_eps": module.norm1.eps,
        "batch_first": module.self_attn.batch_first,
        "norm_first": module.norm_first,
        "bias": module.linear1.bias is not None,
    }
    return Arguments([], kwargs)


def _transformer_stack(module: Any) -> Arguments:
    kwargs = {"num_layers": len(module.layers), "norm": module.norm}
    if hasattr(module, "use_nested_tensor"):
        kwargs["enable_nested_tensor"] = module.enable_nested_tensor
        kwargs["mask_check"] = module.mask_check
    return Arguments([module.layers[0]], kwargs)


def _transformer(module: Any) -> Arguments:
    kwargs = {
        "d_model": module.d_model,
        "nhead": module.nhead,
        "custom_encoder": module.encoder,
        "custom_decoder": module.decoder,
        "batch_first": module.batch_first,
    }
    return Arguments([], kwargs)


def _instance_of_loss(module: Any) -> Arguments:
    parameters = list(inspect.signature(type(module).__init__).parameters.values())[1:]
    return _match(module, [p for p in parameters if p.name not in ("size_average", "reduce")])


def _embedding(module: Any) -> Arguments:
    parameters = list(inspect.signature(type(module).__init__).parameters.values())[1:]
    return _match(module, [p for p in parameters if not p.name.startswith("_")])


_OWN: dict[str, Callable[[Any], Arguments]] = {
    "torch.nn.modules.container.Sequential": _sequential,
    "torch.nn.modules.container.ModuleList": _module_list,
    "torch.nn.modules.container.ModuleDict": _module_dict,
    "torch.nn.modules.container.ParameterList": _parameter_list,
    "torch.nn.modules.container.ParameterDict": _parameter_dict,
    "torch.nn.modules.rnn.RNN": _recurrent,
    "torch.nn.modules.rnn.LSTM": _recurrent,
    "torch.nn.modules.rnn.GRU": _recurrent,
    "torch.nn.modules.rnn.RNNCellBase": _cell,
    "torch.nn.modules.rnn.RNNCell": _cell,
    "torch.nn.modules.rnn.LSTMCell": _cell,
    "torch.nn.modules.rnn.GRUCell": _cell,
    "torch.nn.modules.activation.MultiheadAttention": _attention,
    "torch.nn.modules.transformer.TransformerEncoderLayer": _transformer_layer,
    "torch.nn.modules.transformer.TransformerDecoderLayer": _transformer_layer,
    "torch.nn.modules.transformer.TransformerEncoder": _transformer_stack,
    "torch.nn.modules.transformer.TransformerDecoder": _transformer_stack,
    "torch.nn.modules.transformer.Transformer": _transformer,
    "torch.nn.modules.loss._Loss": _instance_of_loss,
    "torch.nn.modules.sparse.Embedding": _embedding,
    "torch.nn.modules.sparse.EmbeddingBag": _embedding,
}
