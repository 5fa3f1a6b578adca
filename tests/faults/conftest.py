"""A process that has imported everything, for children to be forked from."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="package", autouse=True)
def warmed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    from scenarios import warm

    threads = torch.get_num_threads()
    level = logging.getLogger("holdtrue").level
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("warm")
    warm(place)
    yield place
    torch.set_num_threads(threads)
    logging.getLogger("holdtrue").setLevel(level)
