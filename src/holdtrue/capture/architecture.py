"""The architecture record of a live model. Wrappers are looked through, as in `capture/module`."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import torch
from msgspec import Struct
from msgspec.structs import replace
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin

from holdtrue.capture.attributes import Attributes
from holdtrue.capture.definitions import class_definition, class_tree, file_name
from holdtrue.capture.forward_code import Forward, forward_of, state_names
from holdtrue.capture.installed import distribution_of, is_installed
from holdtrue.capture.module import entries, has_getstate, names_of_own_state, walk
from holdtrue.capture.raw import dtype_name
from holdtrue.capture.source_code import SourceCode
from holdtrue.capture.source_files import source_files
from holdtrue.records.architecture import Architecture, ClassRecord, Kind, TensorFacts
from holdtrue.records.trust import class_name

_INTERNALS = frozenset(vars(nn.Module())) | {
    "_is_full_backward_hook",
    "_compiled_call_impl",
    "_holdtrue_arguments",  # in the recipe
}
_HOOKS = {
    "_forward_pre_hooks": "forward_pre",
    "_forward_hooks": "forward",
    "_backward_pre_hooks": "backward_pre",
    "_backward_hooks": "backward",
}
_LAZY = "torch.nn.modules.lazy."  # its hooks leave with the first batch
_KEPT = ("_hparams",)  # Lightning's
_PLAIN = (bool, int, float, str, type(None))


class CapturedArchitecture(Struct, frozen=True, eq=False):
    """A record, and the source files that go beside it."""

    record: Architecture
    sources: dict[str, str]  # file name → text
    # What the record was made from, beside the modules themselves.
    classes: dict[type, Forward]
    attributes: dict[type, set[str]]
    environment: tuple[frozenset[str], frozenset[str]]


def capture_architecture(model: nn.Module) -> CapturedArchitecture:
    """What `model` is beside its weights. Nothing of the model is called."""
    modules = list(walk(model))
    names: dict[int, list[str]] = {}
    for entry in entries(model):
        names.setdefault(id(entry.tensor), []).append(entry.name)
    held = {identity: group[0] for identity, group in names.items()}
    describing = _Describing(modules, held)
    positions: dict[bytes, int] = {}
    kinds: list[Kind] = []
    placed: dict[str, int] = {}
    alike: dict[Any, int] = {}  # what plain modules consist of → their kind
    for path, module in modules:
        look = _plain_look(module)
        position = alike.get(look) if look is not None else None
        if position is None:
            kind = describing.kind(module)
            position = positions.setdefault(msgspec.json.encode(kind), len(kinds))
            if position == len(kinds):
                kinds.append(kind)
            if look is not None and not has_getstate(module):
                alike[look] = position
        placed[path] = position
    classes = describing.class_records()
    sources = source_files(describing.code, describing.defined)
    record = Architecture(
        modules=placed,
        kinds=tuple(kinds),
        classes=classes,
        functions=describing.code.functions,
        objects=tuple(describing.attributes.objects),
        ties=tuple(tuple(group) for group in names.values() if len(group) > 1),
        distributions=describing.distributions,
        files=tuple(sources),
    )
    return describing.captured(record, sources)


def describe_again(
    before: CapturedArchitecture,
    modules: list[nn.Module],
    held: Mapping[int, str],
    odd: Iterable[int],
) -> CapturedArchitecture | None:
    """The record of modules that are proved to be as they were, but for the `odd` ones, and for
    what classes and functions say, which is described anew. None where a module is another."""
    paths = before.record.modules
    if len(paths) != len(modules):
        return None
    describing = _Describing(list(zip(paths, modules, strict=True)), held)
    if describing.attributes.environment != before.environment:  # which masks are put over texts
        return None
    if any(forward_of(cls) != forward for cls, forward in before.classes.items()):
        return None
    describing.know(before)
    positions = tuple(paths.values()) if odd else ()
    for place in sorted(odd):
        kind = before.record.kinds[positions[place]]
        if msgspec.json.encode(describing.kind(modules[place])) != msgspec.json.encode(kind):
            return None
    classes = describing.class_records()
    sources = source_files(describing.code, describing.defined)
    record = replace(
        before.record,
        classes=classes,
        functions=describing.code.functions,
        objects=tuple(describing.attributes.objects),
        distributions=describing.distributions,
        files=tuple(sources),
    )
    return describing.captured(record, sources)


_FEW = 8  # tensors of one module, or items of one of its attributes


def _plain_look(module: nn.Module) -> tuple[Any, ...] | None:
    """All that a module's kind is made of, so that of many that are alike one is described; None
    for a module that holds more than a few plain values and tensors."""
    own = vars(module)
    tensors = {**own["_parameters"], **own["_buffers"]}
    odd = "parametrizations" in own["_modules"] or any(own.get(hooks) for hooks in _HOOKS)
    if odd or len(tensors) > _FEW:
        return None
    look: list[Any] = [type(module), module.training, len(own["_parameters"])]
    for name, value in own.items():
        if name in _INTERNALS:
            continue
        kind = type(value)
        if kind is tuple or kind is list:
            if len(value) > _FEW or not all(type(v) is int for v in value):
                return None
            look.append((name, kind, tuple(value)))
        elif kind is float:
            look.append((name, kind, value.hex()))  # 0.0 is not -0.0
        elif value is None or kind is bool or kind is int or kind is str:
            look.append((name, kind, value))
        else:
            return None
    apart = own["_non_persistent_buffers_set"]
    for name, tensor in tensors.items():
        if tensor is None:
            look.append((name, None))
        elif type(tensor) is Tensor or type(tensor) is nn.Parameter:
            look.append((name, tensor.dtype, tensor.shape, tensor.requires_grad, name in apart))
        else:
            return None
    return tuple(look)


def describe_tensors(model: nn.Module) -> Architecture:
    """No more than classes, flags and tensors, for a model whose attributes cannot be read."""
    modules = list(walk(model))
    kinds = tuple(
        Kind(class_name=class_name(type(m)), training=m.training, tensors=_tensors(m))
        for _, m in modules
    )
    return Architecture(modules={path: i for i, (path, _) in enumerate(modules)}, kinds=kinds)


class _Describing:
    """What is gathered while the modules of one model are gone through."""

    def __init__(self, modules: list[tuple[str, nn.Module]], held: Mapping[int, str]) -> None:
        self.code = SourceCode()
        paths: dict[int, str] = {}
        for path, module in modules:
            paths.setdefault(id(module), path)
        self.attributes = Attributes(self.code, paths, held)
        self.code.describe = self.attributes.node
        self.distributions: dict[str, str] = {}
        self.defined: dict[type, Any] = {}  # user classes → their definitions
        self._classes: dict[type, Forward] = {}
        self._attribute_names: dict[type, set[str]] = {}

    def know(self, before: CapturedArchitecture) -> None:
        """Take over which classes there are, and which attributes their modules have."""
        self._classes.update(before.classes)
        self._attribute_names.update({c: set(names) for c, names in before.attributes.items()})

    def captured(self, record: Architecture, sources: dict[str, str]) -> CapturedArchitecture:
        return CapturedArchitecture(
            record, sources, self._classes, self._attribute_names, self.attributes.environment
        )

    def kind(self, module: nn.Module) -> Kind:
        cls = plain_class(type(module))
        if cls not in self._classes:
            self._classes[cls] = forward_of(cls)
        nodes = self._attributes(cls, module)
        return Kind(
            class_name=class_name(cls),
            training=module.training,
            attributes=nodes,
            tensors=_tensors(module),
            arguments=_arguments(cls, module, nodes),
            hooks=self._hooks(module),
            parametrizations=_parametrizations(module),
        )

    def _attributes(self, cls: type, module: nn.Module) -> dict[str, Any]:
        installed = is_installed(cls)
        restored = names_of_own_state(module)  # state, which a restore puts back
        mentioned = self._classes[cls].names
        found = {}
        for name, value in vars(module).items():
            if name in _INTERNALS or name in restored:
                continue
            # An underscore in library code means that it follows from the rest.
            hidden = (
                name[:1] == "_"
                and name not in _KEPT
                and (name not in mentioned or (installed and _is_plain(value)))
            )
            if not hidden or _is_unregistered(value):
                found[name] = self.attributes.node(value)
        self._attribute_names.setdefault(cls, set()).update(found)
        return found

    def _hooks(self, module: nn.Module) -> dict[str, tuple[str, ...]]:
        found = {}
        for attribute, label in _HOOKS.items():
            hooks = getattr(module, attribute, None)
            if hooks:
                names = [self._hook(hook) for hook in hooks.values()]
                kept = tuple(name for name in names if not name.startswith(_LAZY))
                found.update({label: kept} if kept else {})
        return found

    def _hook(self, hook: Any) -> str:
        function = getattr(hook, "__func__", hook)
        function = getattr(function, "func", function)  # functools.partial
        if not inspect.isroutine(function):
            function = type(function)
        return self.code.add_function(function) or class_name(function)

    def class_records(self) -> dict[str, ClassRecord]:
        # What user code mentions it may read of any module; library code, of those of its own.
        read: dict[str, set[str]] = {}
        for cls, forward in self._classes.items():
            read.setdefault(_package(cls), set()).update(forward.names)
        mine = read.get("", set())
        return {
            class_name(cls): self._class_record(
                cls, forward, None if forward.dynamic else mine | read[_package(cls)]
            )
            for cls, forward in self._classes.items()
        }

    def _class_record(self, cls: type, forward: Forward, read: set[str] | None) -> ClassRecord:
        attributes = self._attribute_names.get(cls, set())
        keys = [self.code.add_function(function) for function in forward.functions]
        file = line = tree = None
        distribution = self._distribution(cls)
        if distribution is None:
            found = self.defined[cls] = class_definition(cls)
            if found is not None:
                path = inspect.getfile(cls) if cls.__module__ != "__main__" else "main.py"
                file, line = file_name(cls.__module__, path), found.line
                tree = class_tree(found)
        if forward.base is not None:
            self._distribution(forward.base)
        own = state_names(cls)
        bases = cls.__mro__[1:-1]
        for base in bases:
            if not is_installed(base) and base not in self.defined:
                self.defined[base] = class_definition(base)
        return ClassRecord(
            bases=tuple(class_name(b) for b in bases if b is not nn.Module),
            distribution=distribution,
            file=file,
            line=line,
            tree=tree,
            forward=tuple(key for key in keys if key is not None),
            base=class_name(forward.base) if forward.base is not None else None,
            constants=self._constants(cls, forward),
            unread=tuple(sorted(attributes - read)) if read is not None else (),
            parameters=_parameters(cls),
            changing=tuple(sorted(attributes & forward.changing)),
            restored=tuple(sorted(attributes if own is None else attributes & own)),
        )

    def _distribution(self, cls: type) -> str | None:
        if not is_installed(cls):
            return None
        package = cls.__module__.partition(".")[0]
        found = distribution_of(package)
        if found is None:
            return package
        self.distributions[found[0]] = found[1]
        return found[0]

    def _constants(self, cls: type, forward: Forward) -> dict[str, Any]:
        """Class attributes of user code that the forward mentions, the nearest first."""
        found: dict[str, Any] = {}
        for owner in cls.__mro__:
            if is_installed(owner):
                continue
            for name, value in vars(owner).items():
                plain = isinstance(value, (*_PLAIN, tuple, list, dict, Tensor, torch.dtype))
                if plain and name in forward.names and name[:2] != "__":
                    found.setdefault(name, self.attributes.node(value))
        return found


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0] if is_installed(cls) else ""


def plain_class(cls: type) -> type:
    """The class that was written, not the one that a parametrization makes of it; of a lazy module
    the one that it becomes with its first batch."""
    become = getattr(cls, "cls_to_become", None) if issubclass(cls, LazyModuleMixin) else None
    if isinstance(become, type):
        return become
    if cls.__module__ == "torch.nn.utils.parametrize" and cls.__name__.startswith("Parametrized"):
        return cls.__mro__[1]
    return cls


def _is_plain(value: Any) -> bool:
    return isinstance(value, (*_PLAIN, list, tuple))


def _is_unregistered(value: Any) -> bool:
    if isinstance(value, Tensor | nn.Module):
        return True
    return isinstance(value, list | tuple) and any(isinstance(v, Tensor | nn.Module) for v in value)


def _tensors(module: nn.Module) -> dict[str, TensorFacts]:
    found: dict[str, TensorFacts] = {}
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            lazy = torch.nn.parameter.is_lazy(tensor)
            found[name] = TensorFacts(
                dtype=dtype_name(tensor.dtype),
                shape=None if lazy else tuple(tensor.shape),
                parameter=name in module._parameters,
                requires_grad=tensor.requires_grad,
                persistent=name not in module._non_persistent_buffers_set,
            )
    return found


def _parametrizations(module: nn.Module) -> dict[str, tuple[str, ...]]:
    lists = module._modules.get("parametrizations")
    if not isinstance(lists, nn.ModuleDict):
        return {}
    return {n: tuple(class_name(type(p)) for p in ps.children()) for n, ps in lists.items()}


_NOT_ARGUMENTS = ("device", "dtype")  # where, and with what precision: the tensors say it
_signatures: dict[type, inspect.Signature | None] = {}


def _parameters(cls: type) -> tuple[str, ...]:
    signature = _signature(cls)
    return tuple(n for n in signature.parameters if n not in _NOT_ARGUMENTS) if signature else ()


def _signature(cls: type) -> inspect.Signature | None:
    if cls not in _signatures:
        try:
            _signatures[cls] = inspect.signature(cls)
        except (ValueError, TypeError):
            _signatures[cls] = None
    return _signatures[cls]


def _arguments(cls: type, module: nn.Module, nodes: Mapping[str, Any]) -> dict[str, Any] | None:
    """Constructor arguments that are no attributes, where all that have no default are known."""
    signature = _signature(cls)
    if signature is None:
        return None
    found: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if name in nodes or name in _NOT_ARGUMENTS:
            continue
        if name in module._parameters:  # bias=True
            found[name] = module._parameters[name] is not None
        elif parameter.default is parameter.empty or parameter.kind in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            return None
    return found
