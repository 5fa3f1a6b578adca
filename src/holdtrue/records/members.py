"""Names that stand twice in a JSON object: for one reader the first counts, or else the last."""

import json
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Raw

_objects = msgspec.json.Decoder(dict[str, Raw])


class _TwiceError(ValueError):
    """Ends the slow reading, with the name."""


def repeated(raw: bytes, inside: Iterable[str] = ()) -> str | None:
    """A name that stands twice in the object, or in one of its members that `inside` names.

    Nearly always none does, and the lengths of what was decoded say so: with a name less, they do
    not add up to the text. Where they do not, which spaces do too, the text is read again by
    Python's own reader, a hundred times as slow, which looks into every object. `raw` is JSON that
    was decoded before.
    """
    members = _objects.decode(raw)
    plain = _adds_up(members, raw.rstrip())
    for name in inside:
        text = bytes(members.get(name, b""))
        plain = plain and (text[:1] != b"{" or _adds_up(_objects.decode(text), text))
    if plain:
        return None
    try:
        json.loads(raw, object_pairs_hook=_unique)
    except _TwiceError as error:
        return str(error)
    return None


def _adds_up(members: dict[str, Raw], text: bytes) -> bool:
    names = msgspec.json.encode(list(members))  # with a comma between two and brackets, as there
    return len(names) + len(members) + sum(map(len, members.values())) == len(text)


def _unique(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise _TwiceError(name)
        seen.add(name)
