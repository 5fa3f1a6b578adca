"""transformers' Trainer: killed and resumed, and what it cannot bring back itself."""

import pytest
from killing import needs, parts_that_differ, run_killed_and_again

import holdtrue

pytestmark = [needs("transformers", "accelerate"), pytest.mark.slow]


def test_a_killed_training_ends_with_the_same_bits(tmp_path, figure):
    whole, cut, reached = run_killed_and_again("transformers_run.py", tmp_path)
    assert 0 < reached < 60
    # Weights, optimizer, schedule and random states, to the bit; of the trainer's own state not
    # what tells of time, and not one loss, below.
    assert parts_that_differ(whole, cut) <= {"trainer"}
    one, other = holdtrue.open(whole)["trainer"], holdtrue.open(cut)["trainer"]
    logs, others = one.pop("log_history"), other.pop("log_history")
    # It counts operations when it logs, and forgets those since then.
    assert other.pop("total_flos") <= one.pop("total_flos")
    assert one == other
    assert [_exact(entry) for entry in logs if "eval_loss" in entry] == [
        _exact(entry) for entry in others if "eval_loss" in entry
    ]
    losses, other_losses = _losses(logs), _losses(others)
    assert losses.keys() == other_losses.keys()
    # The Trainer sums the loss between two log entries where no callback reaches it, and begins
    # anew when it is resumed: the first entry after that is the mean of fewer steps.
    first_after = min(step for step in losses if step > reached)
    assert {step for step in losses if losses[step] != other_losses[step]} <= {first_after}
    figure("frameworks killed and resumed")


def _exact(entry):
    """Without what tells how fast it was."""
    return {k: v for k, v in entry.items() if not k.endswith(("_runtime", "_per_second"))}


def _losses(history):
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}
