"""The pickle stack machine, run symbolically: values in, a tree out, nothing imported or called.

Known constructors (`pickle_constructors`) are interpreted as data. Every other import becomes a
`NamedReference`, every other call a `Record`, and both are listed as what the file would run.
"""

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable
from typing import Any

from msgspec import Struct

from holdtrue.errors import DamageError, HoldtrueError, fail
from holdtrue.findings import Finding
from holdtrue.formats.pickle_build import apply_state
from holdtrue.formats.pickle_constructors import CONSTRUCTORS, is_inert_class, is_plain_name
from holdtrue.formats.pickle_containers import add_elements, add_pairs, elements, extend
from holdtrue.formats.pickle_context import ArgumentsError, Context
from holdtrue.formats.pickle_opcodes import Span, read_opcodes
from holdtrue.formats.pickle_operations import Operation
from holdtrue.formats.pickle_salvage import close_stacks
from holdtrue.formats.pickle_source import PickleSource, over_budget
from holdtrue.formats.pickle_tensors import span_tensor
from holdtrue.formats.tree_walk import first_places
from holdtrue.limits import limits
from holdtrue.records.inert import NamedReference, Record

Persistent = Callable[[Any], Any]


class Walked(Struct, frozen=True, kw_only=True):
    """One pickle as data."""

    value: Any
    would_run: tuple[Operation, ...] = ()
    protocol: int = 0
    end: int = 0  # offset after STOP
    findings: tuple[Finding, ...] = ()
    complete: bool = True  # False where salvage had to stop before STOP


def walk(
    data: bytes | memoryview | PickleSource,
    *,
    persistent: Persistent | None = None,
    where: str,
    salvage: bool = False,
    nested: Callable[[Any, Context], Any] | None = None,
) -> Walked:
    """Interpret one pickle. `persistent` turns a persistent id into a value.

    Raises DamageError where the stream is broken and OpenError where a budget is passed. With
    `salvage` the tree is returned as far as it is known, and the damage is among the findings.
    `nested` reads the torch file inside a byte string, for pickles that hold such.
    """
    source = data if isinstance(data, PickleSource) else PickleSource(data, where)
    return _Machine(source, where, persistent, nested).run(salvage)


class _Machine:
    """Stack, marks and memo. Each opcode is one entry of `_RUN` below."""

    def __init__(
        self,
        source: PickleSource,
        where: str,
        persistent: Persistent | None,
        nested: Callable[[Any, Context], Any] | None,
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

    def run(self, salvage: bool) -> Walked:
        complete = True
        damage: tuple[Finding, ...] = ()
        try:
            value = self.interpret()
        except HoldtrueError as error:
            if not salvage or not isinstance(error, DamageError):
                raise
            complete, damage = False, error.report.findings
            value = self.salvaged()
        results = self.context.results()
        places = first_places(value, results, self.where) if results else {}
        return Walked(
            value=value,
            would_run=self.context.operations(places),
            protocol=self.protocol,
            end=self.source.offset,
            findings=(*self.context.findings, *damage),
            complete=complete,
        )

    def interpret(self) -> Any:
        context = self.context
        try:
            for opcode, argument, offset in read_opcodes(self.source):
                context.offset = offset
                if opcode.name == "STOP":
                    break
                _RUN[opcode.name](self, argument)
            return self.stack.pop()
        except HoldtrueError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise self.malformed(error) from None

    def salvaged(self) -> Any:
        try:
            return close_stacks(self.context, self.marks, self.stack)
        except HoldtrueError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise self.malformed(error) from None

    def malformed(self, error: Exception) -> DamageError:
        reason = (
            str(error)[:200] if isinstance(error, ValueError) else _REASONS.get(type(error), "")
        )
        return fail(
            DamageError,
            self.where,
            Finding(
                code="pickle-malformed",
                severity="error",
                where=f"{self.where}: byte {self.context.offset}",
                what="the pickle does not make sense here",
                why=reason or "an opcode finds something else than it needs",
                fix="fetch or save the file again; `holdtrue salvage` keeps what comes before",
            ),
        )

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
        reference = NamedReference(f"{module}.{name}")
        if not is_plain_name(reference.name):
            self.context.would("import", reference.name, reference)
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
        self.stack.append(self.result(function, args, kwargs or {}))

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
            except ArgumentsError as error:
                context.note("odd-arguments", f"{name} is called with {error}", error=True)
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
            self.context.note("odd-arguments", f"a tensor is given {error}", error=True)
            return
        if built is not target:
            self.stack[-1] = built
            for slot in pending[1] if pending else ():
                self.memo[slot] = built

    def persist(self, pid: Any) -> None:
        self.context.spend_nodes(1)
        if self.persistent is None:
            self.context.note("persistent-id", "the pickle refers to something outside itself")
            self.stack.append(Record(class_name="pickle.persistent_load", args=(pid,)))
        else:
            self.stack.append(self.persistent(pid))

    def take_items(self, put: Callable[[Context, Any, list[Any]], None]) -> None:
        items = self.pop_mark()
        put(self.context, self.stack[-1], items)

    def take_one(self, put: Callable[[Context, Any, list[Any]], None], count: int) -> None:
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


def _pop(machine: _Machine) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.pop_mark()


def _dict(machine: _Machine) -> None:
    target: dict[Any, Any] = {}
    add_pairs(machine.context, target, machine.pop_mark())
    machine.push(target)


def _object(machine: _Machine) -> None:
    function, *args = machine.pop_mark()
    machine.call(function, tuple(args))


def _instance(machine: _Machine, names: tuple[str, str]) -> None:
    args = machine.pop_mark()
    machine.reference(*names)
    machine.call(machine.stack.pop(), tuple(args))


def _reduce(machine: _Machine) -> None:
    args, function = machine.stack.pop(), machine.stack.pop()
    machine.call(function, args)


def _new_with_keywords(machine: _Machine) -> None:
    kwargs, args, cls = machine.stack.pop(), machine.stack.pop(), machine.stack.pop()
    machine.call(cls, args, kwargs)


def _stack_global(machine: _Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.reference(module, name)


def _protocol(machine: _Machine, number: int) -> None:
    if number > 5:
        raise ValueError(f"pickle protocol {number}; the highest known is 5")
    machine.protocol = number


_PUSHES = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "SHORT_BINSTRING",
    "SHORT_BINBYTES",
)  # fmt: skip

_RUN: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": lambda m, _: m.mark(),
    "POP": lambda m, _: _pop(m),
    "POP_MARK": lambda m, _: (m.pop_mark(), None)[1],
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "NONE": lambda m, _: m.stack.append(None),
    "NEWTRUE": lambda m, _: m.stack.append(True),
    "NEWFALSE": lambda m, _: m.stack.append(False),
    **dict.fromkeys(_PUSHES, _Machine.push),
    **dict.fromkeys(("BINBYTES", "BINBYTES8", "BYTEARRAY8"), _Machine.push_counted),
    "BINSTRING": _Machine.push_counted,
    "PERSID": _Machine.persist,
    "BINPERSID": lambda m, _: m.persist(m.stack.pop()),
    "REDUCE": lambda m, _: _reduce(m),
    "NEWOBJ": lambda m, _: _reduce(m),
    "NEWOBJ_EX": lambda m, _: _new_with_keywords(m),
    "OBJ": lambda m, _: _object(m),
    "INST": _instance,
    "BUILD": lambda m, _: m.build(),
    "GLOBAL": lambda m, names: m.reference(*names),
    "STACK_GLOBAL": lambda m, _: _stack_global(m),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), _Machine.extension),
    "DICT": lambda m, _: _dict(m),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "LIST": lambda m, _: m.push(m.pop_mark()),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_SET": lambda m, _: m.push(set()),
    "FROZENSET": lambda m, _: m.push(frozenset(elements(m.pop_mark()))),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "TUPLE": lambda m, _: m.push(tuple(m.pop_mark())),
    "TUPLE1": lambda m, _: m.tuple_of(1),
    "TUPLE2": lambda m, _: m.tuple_of(2),
    "TUPLE3": lambda m, _: m.tuple_of(3),
    "APPEND": lambda m, _: m.take_one(extend, 1),
    "APPENDS": lambda m, _: m.take_items(extend),
    "ADDITEMS": lambda m, _: m.take_items(add_elements),
    "SETITEM": lambda m, _: m.take_one(add_pairs, 2),
    "SETITEMS": lambda m, _: m.take_items(add_pairs),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.recall),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.remember),
    "MEMOIZE": lambda m, _: m.remember(len(m.memo)),
    "PROTO": _protocol,
    "FRAME": _Machine.frame,
    "NEXT_BUFFER": lambda m, _: m.next_buffer(),
    "READONLY_BUFFER": lambda m, _: None,
}

_REASONS: dict[type[Exception], str] = {
    IndexError: "the stack is empty where an opcode needs a value",
    KeyError: "a value that was never stored is asked for",
    TypeError: "a value is of another kind than the opcode needs",
}
