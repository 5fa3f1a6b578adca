"""What a conversion can write. Apart, so that the command line's options import nothing else."""

from typing import Literal, get_args

Kind = Literal["holdtrue", "safetensors", "shards", "torch"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_TITLES: dict[Kind, str] = {
    "holdtrue": "a holdtrue checkpoint",
    "safetensors": "a safetensors file",
    "shards": "a set of safetensors shards",
    "torch": "a torch state dict",
}


def title(kind: Kind) -> str:
    """The kind in words."""
    return _TITLES[kind]
