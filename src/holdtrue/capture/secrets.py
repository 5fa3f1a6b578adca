"""Masks what looks like a secret in text that is to be kept: command lines and diffs."""

import re
from collections.abc import Iterable

MASK = "•••"

# Not "tokenizer", "max_tokens", "authors", "secretary".
_WORD = (
    r"(?:api[-_]?key|access[-_]?key|(?:secret|token|passw(?:or)?d|passphrase|credentials?|auth"
    r"|authorization)(?![a-z]))"
)
_NAMED = re.compile(rf"(?i)([\w.-]*{_WORD}[\w.-]*)")
# name=value, "name": "value", name: value; the value as far as it goes
_ASSIGNED = re.compile(
    rf"""(?ix) ( [\w.-]* {_WORD} [\w.-]* ["']? \s* [=:] \s* ["']? )
    ( [^\s"',;}})]{{4,}} )"""
)
_KNOWN = re.compile(
    r"""(?x)
    \b hf_[A-Za-z0-9]{8,} | \b (?:ghp|gho|ghs|ghu|github_pat)_[A-Za-z0-9_]{16,}
    | \b sk-[A-Za-z0-9_-]{16,} | \b (?:AKIA|ASIA)[A-Z0-9]{16} | \b xox[abprs]-[A-Za-z0-9-]{10,}
    | \b glpat-[A-Za-z0-9_-]{16,} | \b eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*
    | \b AIza[A-Za-z0-9_-]{30,}
    """
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}")
_IN_URL = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")


def mask(text: str) -> str:
    """The text with what looks like a secret replaced."""
    text = _IN_URL.sub(MASK, _KNOWN.sub(MASK, text))
    text = _BEARER.sub(lambda m: f"{m[1]} {MASK}", text)
    return _ASSIGNED.sub(lambda m: m[1] + MASK, text)


def mask_command(arguments: Iterable[str]) -> tuple[str, ...]:
    """A command line; `--token abc` is one secret in two arguments."""
    kept: list[str] = []
    expected = False
    for argument in arguments:
        hidden = expected and not argument.startswith("--")
        kept.append(MASK if hidden else mask(argument))
        bare = argument.startswith("-") and "=" not in argument
        expected = bare and bool(_NAMED.fullmatch(argument.lstrip("-")))
    return tuple(kept)
