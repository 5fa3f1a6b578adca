"""From another tool's error message, or a traceback, to the pages that explain it.

The patterns come from the pages themselves. The longer the text that a pattern prescribes, the
better it fits; what a number or a name in the message says comes first. Where nothing fits, the
pages that share the most telling words are named, as a guess.
"""

import re
from collections import Counter
from functools import cache

from msgspec import Struct

from holdtrue.doctor.explain import Page, page, pages
from holdtrue.doctor.message_facts import Fact, facts

_LONGEST = 100_000  # characters of a message; of a longer one the end
_SHOWN = 5
_LINE = 120  # characters of a message that are repeated
_DECODED = 1000  # above what any pattern of plain text weighs
_PLACEHOLDER = re.compile(r"<[a-z_ ]+>")
_CHAINED = re.compile(
    r"^(The above exception was the direct cause|During handling of the above exception)"
)
_RANK = re.compile(r"^(\[rank\d+\]:\s?|\s*\|\s?)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_WORD = re.compile(r"[a-z_][a-z_0-9]{3,}")


class Fit(Struct, frozen=True):
    """A page that fits a message; a guess where only words agree."""

    code: str
    title: str
    sure: bool


class Reading(Struct, frozen=True):
    """What can be said of a message."""

    message: str  # the one line that was read
    facts: tuple[str, ...] = ()
    fits: tuple[Fit, ...] = ()


def read_message(text: str) -> Reading:
    """The pages that fit an error message or a traceback, best first."""
    blocks = exceptions(text[-_LONGEST:])
    said: list[Fact] = []
    weights: Counter[str] = Counter()
    for age, block in enumerate(blocks):  # the last exception first
        found = facts(block)
        said += found
        # The causes of an exception count too, and less than the exception itself.
        for number, fact in enumerate(found):
            if fact.code:
                weights[fact.code] = max(weights[fact.code], _DECODED - age * 100 - number)
        for code, weight in _weights(block).items():
            weights[code] = max(weights[code], weight - age)
    fits = tuple(_fit(code, sure=True) for code, _ in _ranked(weights) if page(code))
    if not fits:
        fits = tuple(_fit(code, sure=False) for code in _by_words(" ".join(blocks)))
    return Reading(
        message=_shortened(blocks[0]) if blocks else "",
        facts=tuple(dict.fromkeys(fact.text for fact in said)),
        fits=fits[:_SHOWN],
    )


def exceptions(text: str) -> list[str]:
    """The messages of a traceback, the last one first; a text that is none is one message."""
    lines = [_RANK.sub("", line) for line in _COLOUR.sub("", text).splitlines()]
    if not any(line.startswith("Traceback (most recent") for line in lines):
        return [single] if (single := _single(lines)) else []
    blocks: list[list[str]] = []
    inside = False  # between a header and the exception's own first line
    for line in lines:
        if line.startswith("Traceback (most recent"):
            inside = True
            blocks.append([])
        elif _CHAINED.match(line):
            inside = True
        elif inside and line and not line[0].isspace():
            inside = False
            blocks[-1].append(line)
        elif not inside and blocks:
            blocks[-1].append(line)
    return [single for block in reversed(blocks) if (single := _single(block))]


def _single(lines: list[str]) -> str:
    return " ".join(" ".join(lines).split())


def _shortened(message: str) -> str:
    """Enough to know it again; the long messages of torch end in advice that is not ours."""
    return message if len(message) <= _LINE else message[:_LINE].rpartition(" ")[0] + " …"


def _fit(code: str, *, sure: bool) -> Fit:
    found = page(code)
    return Fit(code=code, title=found.title if found else "", sure=sure)


def _ranked(weights: Counter[str]) -> list[tuple[str, int]]:
    return sorted(weights.items(), key=lambda item: (-item[1], item[0]))


def _weights(message: str) -> dict[str, int]:
    lowered = message.lower()
    found: dict[str, int] = {}
    for code, parts in _patterns():
        if _matches(parts, lowered):
            found[code] = max(found.get(code, 0), sum(map(len, parts)))
    return found


@cache
def _patterns() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Each page's patterns as the literal texts between their placeholders."""
    return tuple(
        (one.code, tuple(_PLACEHOLDER.split(" ".join(pattern.lower().split()))))
        for one in pages()
        for pattern in one.messages
    )


def _matches(parts: tuple[str, ...], text: str) -> bool:
    """Whether the literals stand in the text in this order. A search for each in turn: a regular
    expression with several gaps can take for ever on a text made for it."""
    literals = [part for part in parts if part]
    if not literals:
        return False
    position = 0
    for number, literal in enumerate(literals):
        first = number == 0 and bool(parts[0])
        last = number == len(literals) - 1 and bool(parts[-1])
        position = _find(literal, text, position, whole_left=first, whole_right=last)
        if position < 0:
            return False
    return True


def _find(literal: str, text: str, start: int, *, whole_left: bool, whole_right: bool) -> int:
    """Where the literal ends in the text; at the pattern's own ends it must not cut a word."""
    at = text.find(literal, start)
    while at >= 0:
        end = at + len(literal)
        left = whole_left and at > 0 and _joined(text[at - 1], literal[0])
        right = whole_right and end < len(text) and _joined(literal[-1], text[end])
        if not left and not right:
            return end
        at = text.find(literal, at + 1)
    return -1


def _joined(one: str, other: str) -> bool:
    return (one.isalnum() or one == "_") and (other.isalnum() or other == "_")


def _by_words(message: str) -> list[str]:
    """Codes of the pages that share the most telling words with a message."""
    wanted = set(_WORD.findall(message.lower()))
    words = _words()
    common = Counter(word for known in words.values() for word in known)
    scores: Counter[str] = Counter()
    for code, known in words.items():
        shared = wanted & known
        if len(shared) >= 2:  # one word alone says nothing
            scores[code] = sum(1000 // common[word] for word in shared)
    return [code for code, score in _ranked(scores)[:3] if score >= 200]


@cache
def _words() -> dict[str, frozenset[str]]:
    def of(one: Page) -> frozenset[str]:
        text = " ".join([one.title, *one.messages, one.sections.get("What happened", "")])
        return frozenset(_WORD.findall(text.lower()))

    return {one.code: of(one) for one in pages()}
