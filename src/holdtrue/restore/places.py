"""The places of a live model that a file can fill, as names and shapes."""

from msgspec import Struct, field
from torch import nn

from holdtrue.capture.module import entries
from holdtrue.records.trust import class_name

_CONV1D = "transformers.pytorch_utils.Conv1D"


class Places(Struct, frozen=True, kw_only=True):
    """Names of a model's parameters and buffers, wrappers looked through."""

    shapes: dict[str, tuple[int, ...] | None]  # None where any shape fits: a lazy module's
    persistent: frozenset[str]
    groups: tuple[tuple[str, ...], ...]  # the names of each tensor; several where it is tied
    conv1d: frozenset[str]  # weights that are stored [in, out]
    matrices: frozenset[str]  # weights of two dimensions, but for embeddings
    parameters: tuple[str, ...]  # in the model's order, tied ones once
    counts: dict[str, int] = field(default_factory=dict)  # elements

    @property
    def needed(self) -> tuple[tuple[str, ...], ...]:
        return tuple(g for g in self.groups if any(n in self.persistent for n in g))

    @classmethod
    def of(cls, module: nn.Module) -> "Places":
        found = list(entries(module))
        groups: dict[int, list[str]] = {}
        for entry in found:
            groups.setdefault(id(entry.tensor), []).append(entry.name)
        first = {group[0] for group in groups.values()}
        return cls(
            shapes={
                e.name: None if nn.parameter.is_lazy(e.tensor) else tuple(e.tensor.shape)
                for e in found
            },
            persistent=frozenset(e.name for e in found if e.persistent),
            groups=tuple(map(tuple, groups.values())),
            conv1d=frozenset(
                e.name
                for e in found
                if e.attribute == "weight" and class_name(type(e.owner)) == _CONV1D
            ),
            matrices=frozenset(
                e.name
                for e in found
                if e.is_parameter
                and not isinstance(e.owner, nn.Embedding | nn.EmbeddingBag)
                and not nn.parameter.is_lazy(e.tensor)
                and e.tensor.dim() == 2
            ),
            parameters=tuple(e.name for e in found if e.is_parameter and e.name in first),
            counts={
                e.name: 0 if nn.parameter.is_lazy(e.tensor) else e.tensor.numel() for e in found
            },
        )
