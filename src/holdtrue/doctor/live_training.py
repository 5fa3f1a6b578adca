"""What the doctor is told of live objects that a training goes on with: data, without torch."""

from typing import Any

from msgspec import Struct, field

from holdtrue.doctor.optimizer_states import Shape

# Settings that say how a step is computed, not what: they follow the machine, not the file.
EXECUTION = frozenset({"foreach", "fused", "capturable", "differentiable"})


class LiveParameter(Struct, frozen=True, kw_only=True):
    name: str | None  # in the model that holds it; None where no given model does
    shape: Shape | None  # None before the first batch of a lazy module
    device: str  # its type: "cpu", "cuda", "meta"


class LiveGroup(Struct, frozen=True, kw_only=True, eq=False):
    parameters: tuple[LiveParameter, ...]
    settings: dict[str, Any]  # plain values; a tensor of one element as its number


class LiveModel(Struct, frozen=True, kw_only=True, eq=False):
    target: str  # what the caller calls it
    shapes: dict[str, Shape | None]  # of its parameters, in order
    trainable: frozenset[str]


class LiveOptimizer(Struct, frozen=True, kw_only=True, eq=False):
    target: str
    class_name: str  # "torch.optim.adamw.AdamW"
    groups: tuple[LiveGroup, ...]
    defaults: frozenset[str]  # names of the settings that its class needs
    call: str  # Python that makes one like it: "torch.optim.AdamW({}, lr=0.001)"; "" if unknown
    step: float | None = None  # that it has made
    shares: tuple[str, ...] = ()  # other optimizers here whose state is the same memory

    @property
    def parameters(self) -> list[LiveParameter]:
        return [parameter for group in self.groups for parameter in group.parameters]


class LiveScheduler(Struct, frozen=True, kw_only=True, eq=False):
    target: str
    class_name: str
    state: dict[str, Any]  # its own state_dict()
    given: frozenset[str]  # names of its settings that come from the code that built it
    groups: int  # of its optimizer
    rates: tuple[float, ...]  # that its optimizer has now
    optimizer: str | None  # the target that it drives, where that is given


class LiveTraining(Struct, frozen=True, kw_only=True, eq=False):
    models: tuple[LiveModel, ...] = ()
    optimizers: tuple[LiveOptimizer, ...] = ()
    schedulers: tuple[LiveScheduler, ...] = ()
    scalers: tuple[str, ...] = ()
    loaders: tuple[str, ...] = ()
    others: dict[str, str] = field(default_factory=dict)  # target → class
