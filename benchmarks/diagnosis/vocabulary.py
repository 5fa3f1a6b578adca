"""What a user must be told, by meaning, and the codes of the doctor that mean it.

Cases name meanings. Codes stand together only where they say the same thing at other formats or
from another side; a code that is merely true of the file too is not listed.
"""

_CODES: dict[str, tuple[str, ...]] = {}


def codes_for(meaning: str) -> tuple[str, ...]:
    """The codes with a meaning; one that has no row is a code itself."""
    return _CODES.get(meaning, (meaning,))
