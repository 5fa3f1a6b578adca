"""A process that has imported everything, for children to be forked from."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def alone_and_quiet() -> Iterator[None]:
    """What is forked has one thread, and its warnings are for nobody. For these modules only: the
    same process goes on with tests of others."""
    threads, log = torch.get_num_threads(), logging.getLogger("holdtrue")
    level = log.level
    torch.set_num_threads(1)
    log.setLevel(logging.CRITICAL)
    yield
    torch.set_num_threads(threads)
    log.setLevel(level)


@pytest.fixture(scope="session", autouse=True)
def warmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from scenarios import warm

    place = tmp_path_factory.mktemp("warm")
    warm(place)
    return place
