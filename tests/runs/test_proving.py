"""Forgotten state is found and named; a training that forgets nothing is found whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import forgetful
import pytest

import holdtrue

FORGOTTEN = {
    forgetful.torch_generator: "['own']",
    forgetful.numpy_generator: "['own']",
    forgetful.python_generator: "['own']",
    forgetful.global_counter: ".__globals__['COUNT']",
    forgetful.module_cache: ".__globals__['SEEN']",
    forgetful.attribute: "train_step.__self__.average",
    forgetful.closure_cell: ".__closure__['calls']",
    forgetful.default_argument: ".__defaults__['history']",
    forgetful.list_position: ".__closure__['places']",
    forgetful.opaque_position: ".__closure__['count']",
    forgetful.generator_position: ".__closure__['made']",
    forgetful.loader_position: ".__closure__['batches']",
    forgetful.environment_variable: "os.environ['FORGETFUL']",
    forgetful.scheduler: ".__closure__['made']",
    forgetful.gradients: ".grad",
    forgetful.norm_momentum: "run.parts['norm'].0.momentum",
    forgetful.module_attribute: "run.parts['counting'].calls",
    forgetful.first_batch: ".__globals__['SCALE']",
    forgetful.cached_function: ".__closure__['draw']",
    forgetful.loose_tensor: ".__closure__['average']",
    forgetful.history: ".__closure__['last']",
    forgetful.class_attribute: ".calls",
}
CHANCE = {
    forgetful.clock: "the clock",
    forgetful.entropy: "entropy",
    forgetful.unknown_chance: "another way",
}
# Nothing can put these back, so that the proof rests on their having moved.
LIKELY = {
    forgetful.opaque_position,
    forgetful.generator_position,
    forgetful.loader_position,
}
Make = Callable[[bool], forgetful.Made]


def prove(tmp_path: Path, made: forgetful.Made, **given: Any) -> holdtrue.Report:
    parts, train_step = made
    return holdtrue.prove_resume(holdtrue.Run(tmp_path / "run", **parts), train_step, **given)


@pytest.mark.parametrize("make", FORGOTTEN, ids=lambda make: make.__name__)
def test_forgotten_state_is_named(make: Make, tmp_path: Path, figure: Any) -> None:
    report = prove(tmp_path, make(False))
    assert not report.ok
    (finding,) = report.findings
    assert finding.code == "state-not-captured"
    assert FORGOTTEN[make] in finding.where
    assert "after step" in finding.why
    assert finding.saved != finding.expected
    assert finding.confidence == ("likely" if make in LIKELY else "certain")
    figure("kinds of forgotten state")


@pytest.mark.parametrize("make", CHANCE, ids=lambda make: make.__name__)
def test_what_is_not_deterministic_is_no_forgotten_state(make: Make, tmp_path: Path) -> None:
    (finding,) = prove(tmp_path, make(False)).findings
    assert finding.code == "not-deterministic"
    assert CHANCE[make] in finding.why


@pytest.mark.parametrize(
    "make", [*FORGOTTEN, *CHANCE, forgetful.log_only], ids=lambda make: make.__name__
)
def test_its_twin_is_whole(make: Make, tmp_path: Path, figure: Any) -> None:
    report = prove(tmp_path, make(True))
    assert report.findings == ()
    assert any("fresh process" in line for line in report.not_checked)  # no name to find it by
    figure("healthy trainings")
