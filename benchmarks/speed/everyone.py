"""Who takes part."""

from benchmarks.speed import other_peers, ours, peers
from benchmarks.speed.contenders import Contender


def contenders(*, all_peers: bool = True) -> tuple[list[Contender], dict[str, str]]:
    """Those that take part, and what is not in this version of holdtrue."""
    first, absent = ours.contender()
    others = [peers.TORCH, peers.SAFETENSORS]
    if all_peers:
        others += [peers.DISTRIBUTED, *other_peers.OTHERS]
    return [first, *others], absent


def verifying() -> list[str]:
    """The loads of others that look at digests."""
    return [load.name for one in _others() for load in one.loads if load.verifies]


def not_verifying() -> list[str]:
    return [load.name for one in _others() for load in one.loads if not load.verifies]


def _others() -> list[Contender]:
    return contenders()[0][1:]
