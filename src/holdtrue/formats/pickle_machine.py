"""The pickle stack machine, run symbolically: values in, a tree out, nothing imported or called.

Known constructors (`pickle_constructors`) are interpreted as data. Every other import becomes a
`NamedReference`, every other call a `Record`, and both are listed as what the file would run.
"""

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from holdtrue.errors import DamageError, HoldtrueError, fail
from holdtrue.findings import Finding
from holdtrue.formats.pickle_containers import add_elements, add_pairs, elements, extend
from holdtrue.formats.pickle_context import REFUSALS, Nested
from holdtrue.formats.pickle_opcodes import read_opcodes
from holdtrue.formats.pickle_operations import Operation
from holdtrue.formats.pickle_salvage import close_stacks
from holdtrue.formats.pickle_source import PickleSource
from holdtrue.formats.pickle_stack import Persistent, PickleStack
from holdtrue.formats.tree_walk import first_places
from holdtrue.formats.weights_only import OPCODES, Refused


class Walked(Struct, frozen=True, kw_only=True):
    """One pickle as data."""

    value: Any
    would_run: tuple[Operation, ...] = ()
    protocol: int = 0
    end: int = 0  # offset after STOP
    findings: tuple[Finding, ...] = ()
    refused: tuple[Refused, ...] = ()  # by torch.load(weights_only=True)
    complete: bool = True  # False where salvage had to stop before STOP


def walk(
    data: bytes | memoryview | PickleSource,
    *,
    persistent: Persistent | None = None,
    where: str,
    salvage: bool = False,
    nested: Nested | None = None,
) -> Walked:
    """Interpret one pickle. `persistent` turns a persistent id into a value.

    Raises DamageError where the stream is broken and OpenError where a budget is passed. With
    `salvage` the tree is returned as far as it is known, and the damage is among the findings.
    `nested` reads the torch file inside a byte string, for pickles that hold such.
    """
    source = data if isinstance(data, PickleSource) else PickleSource(data, where)
    return _run(PickleStack(source, where, persistent, nested), salvage)


def _run(machine: PickleStack, salvage: bool) -> Walked:
    complete = True
    damage: tuple[Finding, ...] = ()
    try:
        value = _interpret(machine)
    except HoldtrueError as error:
        if not salvage or not isinstance(error, DamageError):
            raise
        complete, damage = False, error.report.findings
        value = _salvaged(machine)
    results = machine.context.results()
    places = first_places(value, results, machine.where) if results else {}
    return Walked(
        value=value,
        would_run=machine.context.operations(places),
        protocol=machine.protocol,
        refused=machine.context.refused(places),
        end=machine.source.offset,
        findings=(*machine.context.findings, *damage),
        complete=complete,
    )


def _interpret(machine: PickleStack) -> Any:
    context = machine.context
    try:
        for opcode, argument, offset in read_opcodes(machine.source):
            context.offset = offset
            name = opcode.name
            if name == "STOP":
                break
            if name not in OPCODES:
                # A long number is a value, and has a place; the others are how values are spelled.
                value = (argument,) if name == "LONG4" else ()
                context.refuse("opcode", f"{name} ({opcode.code})", *value)
            elif name == "SHORT_BINSTRING" and type(argument) is bytes:
                context.refuse("text", "a Python 2 string that is not UTF-8", argument)
            _RUN[name](machine, argument)
        return machine.stack.pop()
    except HoldtrueError:
        raise
    except REFUSALS as error:
        raise _malformed(machine, error) from None


def _salvaged(machine: PickleStack) -> Any:
    try:
        return close_stacks(machine.context, machine.marks, machine.stack)
    except HoldtrueError:
        raise
    except REFUSALS as error:
        raise _malformed(machine, error) from None


def _malformed(machine: PickleStack, error: Exception) -> DamageError:
    reason = str(error)[:200] if isinstance(error, ValueError) else _REASONS.get(type(error), "")
    return fail(
        DamageError,
        machine.where,
        Finding(
            code="pickle-malformed",
            severity="error",
            where=f"{machine.where}: byte {machine.context.offset}",
            what="the pickle does not make sense here",
            why=reason or "an opcode finds something else than it needs",
            fix="fetch or save the file again; `holdtrue salvage` keeps what comes before",
        ),
    )


def _pop(machine: PickleStack) -> None:
    if machine.stack:
        machine.stack.pop()
    else:
        machine.pop_mark()


def _dict(machine: PickleStack) -> None:
    target: dict[Any, Any] = {}
    add_pairs(machine.context, target, machine.pop_mark())
    machine.push(target)


def _object(machine: PickleStack) -> None:
    function, *args = machine.pop_mark()
    machine.call(function, tuple(args))


def _instance(machine: PickleStack, names: tuple[str, str]) -> None:
    args = machine.pop_mark()
    machine.reference(*names)
    machine.call(machine.stack.pop(), tuple(args))


def _reduce(machine: PickleStack) -> None:
    args, function = machine.stack.pop(), machine.stack.pop()
    machine.call(function, args)


def _new_with_keywords(machine: PickleStack) -> None:
    kwargs, args, cls = machine.stack.pop(), machine.stack.pop(), machine.stack.pop()
    machine.call(cls, args, kwargs)


def _stack_global(machine: PickleStack) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.reference(module, name)


def _protocol(machine: PickleStack, number: int) -> None:
    if number > 5:
        raise ValueError(f"pickle protocol {number}; the highest known is 5")
    machine.protocol = number


_PUSHES = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "SHORT_BINSTRING",
    "SHORT_BINBYTES",
)  # fmt: skip

_RUN: dict[str, Callable[[PickleStack, Any], None]] = {
    "MARK": lambda m, _: m.mark(),
    "POP": lambda m, _: _pop(m),
    "POP_MARK": lambda m, _: (m.pop_mark(), None)[1],
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "NONE": lambda m, _: m.stack.append(None),
    "NEWTRUE": lambda m, _: m.stack.append(True),
    "NEWFALSE": lambda m, _: m.stack.append(False),
    **dict.fromkeys(_PUSHES, PickleStack.push),
    **dict.fromkeys(("BINBYTES", "BINBYTES8", "BYTEARRAY8"), PickleStack.push_counted),
    "BINSTRING": PickleStack.push_counted,
    "PERSID": PickleStack.persist,
    "BINPERSID": lambda m, _: m.persist(m.stack.pop()),
    "REDUCE": lambda m, _: _reduce(m),
    "NEWOBJ": lambda m, _: _reduce(m),
    "NEWOBJ_EX": lambda m, _: _new_with_keywords(m),
    "OBJ": lambda m, _: _object(m),
    "INST": _instance,
    "BUILD": lambda m, _: m.build(),
    "GLOBAL": lambda m, names: m.reference(*names),
    "STACK_GLOBAL": lambda m, _: _stack_global(m),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), PickleStack.extension),
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
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), PickleStack.recall),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), PickleStack.remember),
    "MEMOIZE": lambda m, _: m.remember(len(m.memo)),
    "PROTO": _protocol,
    "FRAME": PickleStack.frame,
    "NEXT_BUFFER": lambda m, _: m.next_buffer(),
    "READONLY_BUFFER": lambda m, _: None,
}

_REASONS: dict[type[Exception], str] = {
    IndexError: "the stack is empty where an opcode needs a value",
    KeyError: "a value that was never stored is asked for",
    TypeError: "a value is of another kind than the opcode needs",
}
