"""Ignite: killed and resumed."""

import pytest
from killing import needs, parts_that_differ, run_killed_and_again

pytestmark = [needs("ignite"), pytest.mark.slow]


def test_a_killed_training_ends_with_the_same_bits(tmp_path, figure):
    whole, cut, reached = run_killed_and_again("ignite_run.py", tmp_path)
    assert 0 < reached < 60
    assert parts_that_differ(whole, cut) == set()
    figure("frameworks killed and resumed")
