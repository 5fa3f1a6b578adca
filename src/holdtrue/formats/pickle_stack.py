"""The stack, marks and memo of a pickle, and what calls and states leave on them."""

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from typing import Any

from holdtrue.formats.pickle_build import apply_state
from holdtrue.formats.pickle_constructors import CONSTRUCTORS, is_inert_class, is_plain_name
from holdtrue.formats.pickle_context import REFUSALS, ArgumentsError, Context, Nested
from holdtrue.formats.pickle_opcodes import Span
from holdtrue.formats.pickle_operations import severity
from holdtrue.formats.pickle_source import PickleSource, over_budget
from holdtrue.formats.pickle_tensors import span_tensor
from holdtrue.formats.weights_only import GLOBALS
from holdtrue.limits import limits
from holdtrue.records.inert import NamedReference, Record

Persistent = Callable[[Any], Any]
Put = Callable[[Context, Any, list[Any]], None]


class PickleStack:
    """The mutable state of one walk; each method is what some opcodes do."""

    def __init__(
        self,
        source: PickleSource,
        where: str,
        persistent: Persistent | None,
        nested: Nested | None,
    ) -> None:
        self.source = source
        self.where = where
        self.context = Context(where, nested)
        self.persistent = persistent
        self.protocol = 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.memo_budget = limits().memo
        self.pending: dict[int, tuple[Record, list[int]]] = {}  # arrays that wait for BUILD
        self.buffers = 0

    def push(self, value: Any) -> None:
        self.context.spend_nodes(1)
        self.stack.append(value)

    def pop_mark(self) -> list[Any]:
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def mark(self) -> None:
        self.context.spend_nodes(1)
        self.marks.append(self.stack)
        self.stack = []

    def remember(self, slot: int) -> None:
        if slot < 0:
            raise ValueError("a negative memo slot")
        value = self.stack[-1]
        self.memo[slot] = value
        if len(self.memo) > self.memo_budget:
            raise over_budget(self.where, "memo", self.memo_budget, "memo slots")
        if self.pending and id(value) in self.pending:
            self.pending[id(value)][1].append(slot)

    def recall(self, slot: int) -> None:
        if slot not in self.memo:
            raise ValueError(f"memo slot {slot} is empty")
        self.stack.append(self.memo[slot])

    def reference(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a global whose name is no text")
        self.context.spend_bytes(len(module) + len(name))
        if self.protocol < 3:
            if (module, name) in NAME_MAPPING:
                module, name = NAME_MAPPING[module, name]
            module = IMPORT_MAPPING.get(module, module)
        # A lone surrogate cannot be printed, and no module is named with one.
        text = f"{module}.{name}".encode("utf-8", "replace").decode()
        reference = NamedReference(text)
        if not is_plain_name(reference.name):
            self.context.would("import", reference.name, reference)
        if text not in GLOBALS:
            self.context.refuse("global", text, reference)
        self.push(reference)

    def extension(self, code: int) -> None:
        reference = NamedReference(f"copyreg.extension.{code}")
        self.context.would("import", reference.name, reference)
        self.push(reference)

    def call(self, function: Any, args: Any, kwargs: Any = None) -> None:
        """What REDUCE, NEWOBJ, OBJ and INST leave on the stack."""
        if type(args) is not tuple:
            raise ValueError("a call whose arguments are no tuple")
        if kwargs is not None and not _is_keywords(kwargs):
            raise ValueError("keyword arguments that are none")
        self.context.spend_nodes(1)
        value = self.result(function, args, kwargs or {})
        if isinstance(function, NamedReference):
            self.context.made(function.name, value)
        self.stack.append(value)

    def result(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        context = self.context
        if not isinstance(function, NamedReference):
            context.spend_nodes(len(args))
            made = Record(class_name="operator.call", args=(function, *args), kwargs=kwargs)
            context.would("call", "operator.call", made)
            return made
        name = function.name
        if name in ("copyreg._reconstructor", "copyreg.__newobj__") and args:
            return self.reconstructed(name, args)
        if name == "builtins.type" and len(args) == 1:
            return NamedReference(f"types.{type(args[0]).__name__}")
        constructor = None if kwargs else CONSTRUCTORS.get(name)
        if constructor is not None:
            try:
                value = constructor(context, args)
            except REFUSALS as error:
                why = str(error)[:200]
                context.note(
                    "odd-arguments", f"{name} is called in a way it refuses", why, error=True
                )
                if severity(name) == "dangerous":
                    context.would("call", name, name)
            else:
                if type(value) is Record and name.endswith("multiarray._reconstruct"):
                    self.pending[id(value)] = (value, [])
                return value
        record = Record(class_name=name, args=args, kwargs=kwargs)
        if not is_inert_class(name) and constructor is None:
            context.would("call", name, record)
        return record

    def reconstructed(self, name: str, args: tuple[Any, ...]) -> Any:
        """`copyreg._reconstructor(class, base, state)`, how protocols 0 and 1 spell objects."""
        function = args[0]
        if name.endswith("__newobj__"):
            return self.result(function, args[1:], {})
        base = args[1] if len(args) > 1 else None
        plain = isinstance(base, NamedReference) and base.name == "builtins.object"
        return self.result(function, () if plain else args[2:3], {})

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        pending = self.pending.pop(id(target), None)
        try:
            built = apply_state(self.context, target, state, pending=pending is not None)
        except ArgumentsError as error:
            why = str(error)[:200]
            self.context.note(
                "odd-arguments", "a tensor is given a state it refuses", why, error=True
            )
            return
        if built is not target:
            self.stack[-1] = built
            if pending is not None:
                self.context.made(pending[0].class_name, built)
            for slot in pending[1] if pending else ():
                self.memo[slot] = built

    def persist(self, pid: Any) -> None:
        self.context.spend_nodes(1)
        if self.persistent is None:
            self.context.note("persistent-id", "the pickle refers to something outside itself")
            self.stack.append(Record(class_name="pickle.persistent_load", args=(pid,)))
        else:
            self.stack.append(self.persistent(pid))

    def take_items(self, put: Put) -> None:
        items = self.pop_mark()
        put(self.context, self.stack[-1], items)

    def take_one(self, put: Put, count: int) -> None:
        items = self.stack[-count:]
        if len(items) < count:
            raise ValueError("the stack is empty")
        del self.stack[-count:]
        put(self.context, self.stack[-1], items)

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise ValueError("the stack is empty")
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.push(items)

    def frame(self, size: int) -> None:
        if size > self.source.remaining:
            self.context.note("frame-too-long", "a frame reaches past the end of the pickle")

    def next_buffer(self) -> None:
        self.buffers += 1
        self.context.note(
            "out-of-band-buffer", "the pickle leaves bytes to a buffer that is not in the file"
        )
        self.push(Record(class_name="pickle.PickleBuffer", args=(self.buffers - 1,)))

    def push_counted(self, value: Any) -> None:
        if isinstance(value, Span):
            value = span_tensor(value, self.context.fresh_key())
        self.push(value)


def _is_keywords(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)
