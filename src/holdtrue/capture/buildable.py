"""`@holdtrue.buildable`: a module class whose instances remember how they were constructed."""

import functools
from typing import Any, TypeVar

from torch import nn

from holdtrue.capture.recipe_nodes import RecipeEncoder

ARGUMENTS = "_holdtrue_arguments"
_MARK = "_holdtrue_buildable"

_M = TypeVar("_M", bound=type[nn.Module])


def buildable(cls: _M) -> _M:
    """Class decorator for modules: a checkpoint then knows how to build them again.

    The arguments of the constructor are recorded as plain values when it is called, so that what
    happens to them later does not matter.
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise TypeError("holdtrue.buildable decorates subclasses of torch.nn.Module")
    construct: Any = cls.__init__

    @functools.wraps(construct)
    def recorded(self: Any, *args: Any, **kwargs: Any) -> None:
        # Recorded by the outermost constructor only. Where that is a subclass's own and is not
        # decorated, these would not be its arguments.
        if ARGUMENTS not in vars(self) and hasattr(type(self).__init__, _MARK):
            _record(self, args, kwargs)
        construct(self, *args, **kwargs)

    setattr(recorded, _MARK, True)
    setattr(cls, "__init__", recorded)  # noqa: B010
    return cls


def _record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    encoder = RecipeEncoder(live=True)
    node = encoder.encode_state({"args": list(args), "kwargs": kwargs}, "")
    # Past nn.Module.__setattr__, which wants its own constructor to have run. In the instance and
    # not in a weak table, so that deepcopy, as for an average of the weights, takes it along.
    vars(module)[ARGUMENTS] = {
        "node": node,
        "named": encoder.named,
        "refused": encoder.refused(),
    }
