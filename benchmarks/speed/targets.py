"""What was aimed at, as data: a limit, and how its value comes from what was measured."""

import statistics
from collections.abc import Callable

from msgspec import Struct

from benchmarks.speed import behind, everyone, fresh, memory, ours, peers, raw, startup
from benchmarks.speed.measured import Measured, paired
from benchmarks.speed.rounds import COLD, DURABLE, STALL, WARM

GROWTH = "growth"
LARGE, LARGER, MANY, MORE = "1 GiB", "4 GiB", "5000 x 10 KB", "20000 x 10 KB"


class Value(Struct, frozen=True):
    """What came out, and beside whom."""

    number: float
    beside: str = ""
    limit: float | None = None  # where the limit itself depends on what was measured


class Target(Struct, frozen=True, kw_only=True):
    name: str
    role: str  # the state it is about
    limit: float
    unit: str  # "x" for ratios, else of the number
    least: bool = False  # the limit is the least that is asked for, not the most
    value: Callable[[Measured, str], Value | None]  # given the state that plays the role
    needs: str = ""  # what has to be in this version for it


class Outcome(Struct, frozen=True, kw_only=True):
    target: Target
    state: str  # the state that was measured
    value: Value | None = None
    why_not: str = ""

    @property
    def limit(self) -> float:
        known = self.value.limit if self.value is not None else None
        return self.target.limit if known is None else known

    @property
    def reached(self) -> bool | None:
        """None where it was not measured."""
        if self.value is None:
            return None
        if self.target.least:
            return self.value.number >= self.limit
        return self.value.number <= self.limit


def outcomes(measured: Measured) -> list[Outcome]:
    """Every target, in order, with what was measured for it, or why nothing was."""
    return [_outcome(target, measured) for target in TARGETS]


def stand_in(measured: Measured, role: str) -> str | None:
    """The state that was measured in this role: itself, or in a smaller run the only one of its
    kind for the smaller role."""
    if role in measured.values or role not in (LARGE, MANY):
        return role if role in measured.values else None
    kind = [s for s in measured.nbytes if (" x " in s) == (role == MANY) and "," not in s]
    return kind[0] if len(kind) == 1 else None


def _outcome(target: Target, measured: Measured) -> Outcome:
    state = stand_in(measured, target.role)
    if target.needs and target.needs in measured.absent:
        why = f"not there yet: {measured.absent[target.needs]}"
        return Outcome(target=target, state=state or target.role, why_not=why)
    found = None if state is None else target.value(measured, state)
    if found is None:
        return Outcome(
            target=target, state=state or target.role, why_not="not measured in this run"
        )
    return Outcome(target=target, state=state or target.role, value=found)


def _ratio(measure: str, above: str, *among: str) -> Callable[[Measured, str], Value | None]:
    """Time of one over that of the fastest of others, round by round."""

    def value(measured: Measured, state: str) -> Value | None:
        beside = measured.fastest(state, measure, among)
        if beside is None:
            return None
        series = measured.series
        found = paired(series(state, measure, above), series(state, measure, beside))
        return None if found is None else Value(found, beside)

    return value


def _speed(measure: str, of: str, *among: str) -> Callable[[Measured, str], Value | None]:
    """Speed of one as a share of the fastest of others."""

    def value(measured: Measured, state: str) -> Value | None:
        found = _ratio(measure, of, *among)(measured, state)
        return None if found is None else Value(1 / found.number, found.beside)

    return value


def _faster_than_all(measure: str, of: str) -> Callable[[Measured, str], Value | None]:
    """Time of the best of all others over ours: above 1, nobody is as fast."""

    def value(measured: Measured, state: str) -> Value | None:
        among = [
            c for c in measured.contenders(state, measure) if not c.startswith(("raw", "holdtrue"))
        ]
        return _speed(measure, of, *among)(measured, state)

    return value


def _other_state(
    measure: str, above: str, other: str, below: str
) -> Callable[[Measured, str], Value | None]:
    """One measure of one contender over another measure of another, round by round."""

    def value(measured: Measured, state: str) -> Value | None:
        series = measured.series
        found = paired(series(state, measure, above), series(state, other, below))
        return None if found is None else Value(found, below)

    return value


def _median(
    measure: str, contender: str, scale: float = 1.0
) -> Callable[[Measured, str], Value | None]:
    def value(measured: Measured, state: str) -> Value | None:
        found = measured.median(state, measure, contender)
        return None if found is None else Value(found * scale)

    return value


def _small_restore(least_ms: float) -> Callable[[Measured, str], Value | None]:
    """At most so many ms or half of safetensors' time, whichever is longer."""

    def value(measured: Measured, state: str) -> Value | None:
        found = measured.median(state, WARM, ours.VERIFIED)
        names = [load.name for load in peers.SAFETENSORS.loads]
        beside = measured.fastest(state, WARM, names)
        if found is None or beside is None:
            return None
        half = 500 * (measured.median(state, WARM, beside) or 0)
        return Value(found * 1000, f"half of {beside}: {half:.0f} ms", max(least_ms, half))

    return value


def _of_the_state(measured: Measured, state: str) -> Value | None:
    found = measured.median(state, memory.BEHIND, ours.PLAIN)
    if found is None:
        return None
    return Value(found * (1 << 20) / measured.nbytes[state])


def _share_of_dcp(measured: Measured, state: str) -> Value | None:
    """By medians: what is lost can be nothing, or less, in a round, and ratios of that say
    nothing."""
    mine, theirs = (
        measured.series(state, behind.LOST, name) for name in (ours.PLAIN, peers.DCP_ASYNC)
    )
    if not mine or not theirs:
        return None
    below = statistics.median(theirs.values())
    return Value(statistics.median(mine.values()) / below, peers.DCP_ASYNC) if below > 0 else None


def _steepest(measured: Measured, state: str) -> Value | None:
    """Of everything that `growth` measures; 1 is a straight line, 2 is quadratic."""
    known = measured.values[state].get("exponent", {})
    steep = [(measured.median(state, "exponent", name) or 0.0, name) for name in known]
    return Value(*max(steep)) if steep else None


def _all() -> list[Target]:
    found: list[Target] = []

    def add(
        name: str,
        role: str,
        limit: float,
        value: Callable[[Measured, str], Value | None],
        unit: str = "x",
        *,
        least: bool = False,
        needs: str = "",
    ) -> None:
        found.append(
            Target(
                name=name,
                role=role,
                limit=limit,
                unit=unit,
                least=least,
                value=value,
                needs=needs,
            )
        )

    for role, limit in ((LARGE, 1.25), (LARGER, 1.10)):
        add(
            "save, durable: time over the fastest raw write",
            role,
            limit,
            _ratio(DURABLE, ours.SAVE, *raw.WRITES),
        )
        name = "save, durable: time of the fastest of the others over ours"
        add(name, role, 1.0, _faster_than_all(DURABLE, ours.SAVE), least=True)
    for role in (LARGE, LARGER):
        add(
            "stall of a save behind, from the second on: over a two-thread memcpy",
            role,
            1.15,
            _other_state(STALL, ours.PLAIN, "memcpy", "raw memcpy, 2 threads"),
        )
    add("stall with overlap=True", LARGE, 5, _median(STALL, ours.OVERLAP, 1000), "ms")
    for name in (ours.PLAIN, ours.OVERLAP):
        add(f"training lost in all, {name}", LARGE, 0.4, _median(behind.LOST, name), "s per GiB")
    add("training lost in all: over DCP async's", LARGE, 0.2, _share_of_dcp)
    add(
        "saves behind: growth after the second", LARGE, 8, _median(memory.GROWTH, ours.PLAIN), "MiB"
    )
    for role in (LARGE, LARGER):
        _loads(add, role)
    for name in (ours.VERIFIED, ours.WHILE):
        needs = ours.WHILE if name == ours.WHILE else ""
        value = _median(memory.LOAD, name)
        add(f"memory added by {name}", LARGE, 64, value, "MiB", needs=needs)
    add(
        "build(mapped=True), warm: over safetensors' mapped load_file",
        LARGE,
        1.2,
        _ratio(fresh.FRESH, ours.MAPPED, fresh.SAFETENSORS),
        needs=ours.MAPPED,
    )
    add(
        "build, warm: over a read into fresh memory",
        LARGE,
        1.5,
        _ratio(fresh.FRESH, ours.BUILD, raw.FRESH),
    )
    for role, times in ((MANY, 1), (MORE, 4)):
        name = "save, durable: time over the fastest raw write"
        add(name, role, 2.5, _ratio(DURABLE, ours.SAVE, *raw.WRITES))
        add("stall of a save behind", role, 15 * times, _median(STALL, ours.PLAIN, 1000), "ms")
        add("restore, warm", role, 60 * times, _small_restore(60 * times), "ms")
    add("memory added by a save", LARGE, 64, _median(memory.SAVE, ours.SAVE), "MiB")
    add("memory added by a save behind: of the state", LARGE, 1.06, _of_the_state)
    startup_value = _median(startup.START, startup.IMPORT, 1000)
    add("import holdtrue, without torch", startup.STATE, 60, startup_value, "ms")
    # By `python -m benchmarks growth`, a run of its own.
    add(
        "growth with bytes, tensors and checkpoints: steepest exponent",
        GROWTH,
        1.15,
        _steepest,
    )
    add("holdtrue --help", startup.STATE, 120, _median(startup.START, startup.HELP, 1000), "ms")
    return found


def _loads(add: Callable[..., None], role: str) -> None:
    default, once = ours.VERIFIED, ours.WHILE
    add("restore, warm: speed of preadv", role, 0.6, _speed(WARM, default, raw.WARM), least=True)
    value = _speed(WARM, default, *everyone.verifying())
    add("restore, warm: times as fast as others that verify", role, 3, value, least=True)
    value = _speed(COLD, default, *raw.READS)
    add("restore, cold: speed of the best O_DIRECT read", role, 0.85, value, least=True)

    def add_once(name: str, limit: float, value: Callable[[Measured, str], Value | None]) -> None:
        add(f'verify="while", {name}', role, limit, value, least=True, needs=once)

    add_once("warm: speed of preadv", 0.8, _speed(WARM, once, raw.WARM))
    value = _speed(WARM, once, *everyone.not_verifying())
    add_once("warm: speed of the fastest that verifies nothing", 0.75, value)
    add_once("cold: speed of the best O_DIRECT read", 0.95, _speed(COLD, once, *raw.READS))
    name = "cold: time of the fastest of the others over ours"
    add_once(name, 1.0, _faster_than_all(COLD, once))


TARGETS = _all()
