"""The growth benchmark tells a line from a curve, and what it measured is among the targets.

No time is asserted: how fast things are is for `python -m benchmarks growth` to say.
"""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.speed import growing, growth_chart, growth_command, growth_results, page, targets  # noqa: E402
from benchmarks.speed.growth import gather, series, table  # noqa: E402
from benchmarks.speed.measured import Measured  # noqa: E402


def power(exponent: float, constant: float = 0.0):
    sizes = (10, 30, 100, 300, 1000)
    return series("save", "tensors", [(n, constant + 1e-6 * n**exponent) for n in sizes])


@pytest.mark.parametrize(("exponent", "straight"), [(0, True), (0.5, True), (1, True), (2, False)])
def test_the_exponent_of_a_power_is_found(exponent, straight):
    found = power(exponent)
    assert found.exponent == pytest.approx(exponent, abs=1e-6)
    assert found.straight is straight
    assert ("STEEP" in table([found])) is not straight


def test_only_the_last_decade_counts_and_its_constant_hides_nothing():
    curve = [(1, 1.0), (10, 1.0), (100, 1.0), (300, 9.0), (1000, 100.0)]
    assert series("open", "tensors", curve).exponent == pytest.approx(2, abs=0.01)
    assert power(2, constant=1e-6).exponent == pytest.approx(2, abs=0.01)


def test_a_line_is_told_by_its_slope_and_what_every_call_costs():
    found = series("save", "MiB", [(n, 0.5 + 0.25 * n) for n in (1, 2, 4, 8)])
    assert (found.slope, found.intercept) == pytest.approx((0.25, 0.5))
    assert found.deviation == pytest.approx(0, abs=1e-9)


def test_the_median_of_the_rounds_counts():
    (found,) = gather("MiB", [(1, {"save": 1.0}), (1, {"save": 9.0}), (1, {"save": 2.0})])
    assert found.points == ((1, 2.0),)


def test_the_steepest_is_among_the_targets():
    measured = Measured()
    growth_results.fill(measured, [power(1), series("log", "x", [(1, 1.0), (10, 100.0)])])
    found = next(o for o in targets.outcomes(measured) if o.target.role == targets.GROWTH)
    assert found.value is not None
    assert (found.value.number, found.value.beside) == (2.0, "log, by x")
    assert found.reached is False
    growth_results.fill(measured, [power(1)])  # what was measured before is gone
    found = next(o for o in targets.outcomes(measured) if o.target.role == targets.GROWTH)
    assert found.reached is True


def test_a_small_run_is_measured_and_written(tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--quick", "--only", "checkpoints", "--only", "tensors", "--most", "10", "--write"]
    found = growth_command.main([*options, "--dir", str(tmp_path), "--results", str(out)])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert growth_results.read(out / growth_results.NAME) == found
    points = {(one.name, one.label): len(one.points) for one in found.series}
    assert points["resume the best", "checkpoints"] == 2
    assert points["doctor", "tensors"] == 1
    assert all(y > 0 for one in found.series for _, y in one.points)
    tree = ElementTree.fromstring((out / growth_results.CHART).read_text())
    height, width = float(tree.attrib["height"]), float(tree.attrib["width"])
    lines = [e for e in tree if e.tag.endswith("polyline")]
    assert len(lines) > 2 * len(found.series)
    for line in lines:
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height
    assert "open @best" in capsys.readouterr().out


def test_a_size_that_does_not_fit_is_skipped_and_named(tmp_path, monkeypatch):
    monkeypatch.setattr(growing, "_free_memory", lambda: 1 << 30)
    options = ["--quick", "--only", "bytes", "--most", "128", "--dir", str(tmp_path)]
    found = growth_command.main(options)
    assert found.series == []
    assert found.skipped == [
        "64 MiB were skipped: 1.0 GiB of memory are free",
        "128 MiB were skipped: 1.0 GiB of memory are free",
    ]


def test_a_part_of_it_gives_no_figures_for_the_page(capsys):
    with pytest.raises(SystemExit):
        growth_command.main(["--quick", "--write"])
    assert "choose another --results" in capsys.readouterr().err
    assert page.RESULTS.name == "results"


def test_the_page_says_how_the_time_grew():
    found = growth_results.read(page.RESULTS / growth_results.NAME)
    text = page.PAGE.read_text()
    assert page.grown(text, found) == text
    assert (page.RESULTS / growth_results.CHART).read_text() == growth_chart.svg(found)
