"""What one walk of a pickle has spent, seen and noticed; shared by all that interpret it."""

from collections.abc import Callable, Iterable
from typing import Any

from holdtrue.findings import Finding
from holdtrue.formats.pickle_operations import Kind, Operation, severity
from holdtrue.formats.pickle_source import over_budget
from holdtrue.formats.weights_only import Refused
from holdtrue.limits import limits
from holdtrue.records.inert import Record

_REFUSED = 1000  # distinct names kept that the restricted unpickler refuses
_ARGUMENTS = 120  # characters of a call's arguments that are shown
_PLACES = 50  # values kept of each, to say where they stand
_FINDINGS = 1000  # kept of one walk; a hostile file could make one an opcode


class ArgumentsError(ValueError):
    """A known constructor with arguments it does not take; the call is kept as a record."""


# What a constructor, or Python below it, raises on arguments that make no sense.
REFUSALS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)

Nested = Callable[[Any, "Context"], Any]  # reads the torch file that a byte string holds


class Context:
    """The mutable state of a walk beside its stack."""

    def __init__(self, where: str, nested: Nested | None) -> None:
        self.where = where
        self.offset = 0
        self.findings: list[Finding] = []
        self.nested = nested
        self._nodes = 0
        self._bytes = 0
        self._keys = 0
        self._limits = limits()
        self._operations: dict[tuple[str, str], tuple[int, int, Any]] = {}
        self._refused: dict[tuple[Any, str], tuple[int, list[int], list[Any]]] = {}

    def spend_nodes(self, count: int) -> None:
        """Account for values made, beyond the one that an opcode makes by itself."""
        self._nodes += count
        if self._nodes > self._limits.entries:
            raise over_budget(self.where, "entries", self._limits.entries, "values in one tree")

    def spend_bytes(self, count: int) -> None:
        """Account for bytes copied: one long string can be asked for again and again."""
        self._bytes += count
        if self._bytes > self._limits.pickle_bytes:
            budget = self._limits.pickle_bytes
            raise over_budget(self.where, "pickle_bytes", budget, "bytes of values")

    def fresh_key(self) -> str:
        """A storage key for bytes inside the pickle itself, shared with nothing."""
        self._keys += 1
        return f"{self.where}#{self._keys}"

    def note(self, code: str, what: str, why: str = "", *, error: bool = False) -> None:
        """Keep a finding about the opcode at hand."""
        if len(self.findings) < _FINDINGS:
            self.findings.append(
                Finding(
                    code=code,
                    severity="error" if error else "warning",
                    where=f"{self.where}: byte {self.offset}",
                    what=what,
                    why=why,
                )
            )

    def would(self, kind: Kind, name: str, result: Any) -> None:
        """Count an import or call that unpickling would do. `result` finds its place later."""
        offset, count, first = self._operations.get((name, kind), (self.offset, 0, result))
        if count or len(self._operations) < self._limits.entries // 50:
            self._operations[(name, kind)] = (offset, count + 1, first)

    def adopt(self, findings: Iterable[Finding], operations: Iterable[Operation]) -> None:
        """Take over what was noticed in a pickle inside this one."""
        for finding in findings:
            if len(self.findings) < _FINDINGS:
                self.findings.append(finding)
        for operation in operations:
            self.would(operation.kind, operation.name, operation)

    def refuse(self, kind: str, name: str, *results: Any) -> None:
        """Count what `torch.load(weights_only=True)` stops at; `results` find their places."""
        known = self._refused.get((kind, name))
        if known is None:
            if len(self._refused) >= _REFUSED:
                return
            known = self._refused[(kind, name)] = (self.offset, [0], [])
        known[1][0] += 1
        if len(known[2]) < _PLACES:
            known[2].extend(results)

    def made(self, name: str, value: Any) -> None:
        """Remember what a call of a refused name made."""
        known = self._refused.get(("global", name))
        if known is not None and len(known[2]) < _PLACES:
            known[2].append(value)

    def refused(self, places: dict[int, str]) -> tuple[Refused, ...]:
        """All that was refused, in order of first occurrence; `places` maps id(value) to a path."""
        return tuple(
            Refused(
                kind=kind,
                name=name,
                offset=offset,
                count=count[0],
                places=tuple(dict.fromkeys(places[id(v)] for v in values if id(v) in places)),
            )
            for (kind, name), (offset, count, values) in self._refused.items()
        )

    def results(self) -> list[Any]:
        """The first result of each operation, and what refused names made."""
        firsts = [first for _, _, first in self._operations.values()]
        return firsts + [value for _, _, values in self._refused.values() for value in values]

    def operations(self, places: dict[int, str]) -> tuple[Operation, ...]:
        """What was counted, in order of first occurrence; `places` maps id(result) to a path."""
        called = {
            n: first for (n, kind), (_, _, first) in self._operations.items() if kind == "call"
        }
        return tuple(
            Operation(
                name=name,
                kind=kind,  # type: ignore[arg-type]  # only would() writes it
                severity=severity(name),
                offset=offset,
                place=places.get(id(first)) or places.get(id(called.get(name)), ""),
                count=count,
                arguments=_plain_arguments(first) if kind == "call" else "",
            )
            for (name, kind), (offset, count, first) in self._operations.items()
        )


def _plain_arguments(result: Any) -> str:
    """What a call would have been given, as short text; "" where that is no plain value."""
    given = result.args if isinstance(result, Record) else ()
    plain = all(isinstance(value, (str, bytes, int, float)) for value in given)
    # A long one is cut before it is written out: it may be as long as the file.
    return ", ".join(repr(_cut(v)) for v in given[:4])[:_ARGUMENTS] if given and plain else ""


def _cut(value: Any) -> Any:
    if isinstance(value, (str, bytes)):
        return value[:_ARGUMENTS]
    return value if not isinstance(value, int) or value.bit_length() <= 64 else "…"
