"""The benchmark runs, tells the truth about what it did, and its page says what was measured.

No time is asserted: how fast things are is for `make bench` to say, on a machine of its own.
"""

import os
import sys
import xml.etree.ElementTree as ElementTree
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.speed import chart, page, results, rounds, table, targets, trial  # noqa: E402
from benchmarks.speed.command import main  # noqa: E402
from benchmarks.speed.contenders import Contender, Load  # noqa: E402
from benchmarks.speed.measured import Measured, paired, quartiles  # noqa: E402
from benchmarks.speed.other_peers import MOONCLIP, TENSORIZER  # noqa: E402
from benchmarks.speed.states import build, sizes  # noqa: E402

SIZES = ["16MiB", "100x10KB"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """One small run, and the folder that it wrote into."""
    folder = tmp_path_factory.mktemp("speed")
    names = ["save", "restore", "stall", "fresh", "training"]
    options = ["--no-peers", "--gentle", "--rounds", "2", "--write", "--sizes", *SIZES]
    found = main([*names, *options, "--dir", str(folder), "--results", str(folder / "out")])
    return found, folder


@pytest.mark.slow  # half a minute of saves, each synced
def test_everyone_is_measured_in_every_round(small):
    measured = small[0].measured
    assert measured.failed == {}
    for state in ("16 MiB", "100 x 10 KB"):
        for measure in (rounds.SAVE, rounds.DURABLE, rounds.COLD, rounds.WARM, rounds.STALL):
            of = measured.values[state][measure]
            assert any(name.startswith("holdtrue") for name in of)
            for name, series in of.items():
                assert set(series) == {0, 1}, (measure, name)
    assert {"torch.save", "safetensors save_file"} < set(
        measured.contenders("16 MiB", rounds.DURABLE)
    )


@pytest.mark.slow  # half a minute of saves, each synced
def test_nothing_is_left_on_the_disk_but_the_results(small):
    assert [path.name for path in small[1].iterdir()] == ["out"]
    assert {path.name for path in (small[1] / "out").iterdir()} == {
        "speed.json",
        "speed.svg",
        "speed.md",
    }


@pytest.mark.slow  # half a minute of saves, each synced
def test_the_file_holds_what_was_measured(small):
    found, folder = small
    read = results.read(folder / "out" / results.NAME)
    assert read == found
    assert {"processor", "cores", "memory", "file system", "kernel"} <= set(read.machine)
    assert read.versions["torch"] != "not installed"


@pytest.mark.slow  # half a minute of saves, each synced
def test_the_chart_is_well_formed_and_stays_within_itself(small):
    tree = ElementTree.fromstring((small[1] / "out" / "speed.svg").read_text())
    height, width = float(tree.attrib["height"]), float(tree.attrib["width"])
    bars = [e for e in tree if e.tag.endswith("rect")][1:]
    names = [e.text for e in tree if e.tag.endswith("text")]
    assert len(bars) > 10
    assert "holdtrue" in names
    for bar in bars:
        x, y, long, tall = (float(bar.attrib[k]) for k in ("x", "y", "width", "height"))
        assert 0 <= x <= x + long <= width
        assert 0 <= y <= y + tall <= height


@pytest.mark.slow  # half a minute of saves, each synced
def test_every_target_is_named_whether_it_was_measured_or_not(small):
    rows = table.target_table(targets.outcomes(small[0].measured)).rows
    assert [row[0] for row in rows] == [target.name for target in targets.TARGETS]
    assert {row[4] for row in rows if row[3] != "–"} <= {"reached", "MISSED"}
    assert all(row[4] for row in rows)
    assert any(row[3] != "–" for row in rows)
    text = (small[1] / "out" / "speed.md").read_text()
    assert all(target.name in text for target in targets.TARGETS)


def test_a_look_at_saves_alone_is_measured_and_shown(tmp_path, capsys):
    options = ["--no-peers", "--gentle", "--rounds", "1", "--sizes", "20x10KB", "--write"]
    found = main(["save", *options, "--dir", str(tmp_path), "--results", str(tmp_path / "out")])
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert found.measured.failed == {}
    of = found.measured.values["20 x 10 KB"]
    assert {rounds.SAVE, rounds.DURABLE} <= set(of)
    assert all(name.startswith("raw") for name in of[rounds.WARM])  # only saves were asked for
    assert {"holdtrue", "torch.save"} <= set(of[rounds.DURABLE])
    assert results.read(tmp_path / "out" / results.NAME) == found
    assert "targets reached" in capsys.readouterr().out


def test_the_page_says_what_was_measured():
    """Nobody writes a figure into it by hand."""
    recorded = page.RESULTS / results.NAME
    text = page.PAGE.read_text()
    if not recorded.exists():
        assert "Nothing yet" in text.partition(page.BEGIN)[2]
        pytest.skip("no results are recorded")
    found = results.read(recorded)
    assert page.filled(text, found) == text
    assert (page.RESULTS / "speed.svg").read_text() == chart.svg(found)


def test_a_ratio_is_taken_within_rounds():
    slow_minute = {0: 1.0, 1: 10.0, 2: 1.0}
    assert paired({0: 2.0, 1: 20.0, 2: 2.0}, slow_minute) == 2.0
    assert paired({0: 2.0}, {1: 1.0}) is None
    assert quartiles({0: 4.0}) == (4.0, 4.0)
    assert quartiles({n: float(n) for n in range(5)}) == (1.0, 3.0)


@pytest.mark.parametrize(("save", "reached"), [(1.2, True), (1.3, False)])
def test_a_target_is_reached_or_missed(save, reached):
    measured = Measured(nbytes={"1 GiB": 1 << 30})
    for number in range(3):
        measured.add("1 GiB", rounds.DURABLE, "holdtrue", number, save)
        measured.add("1 GiB", rounds.DURABLE, "raw buffered 4x8 MiB", number, 3.0)
        measured.add("1 GiB", rounds.DURABLE, "raw O_DIRECT 4x8 MiB", number, 1.0)
    first = targets.outcomes(measured)[0]
    assert first.target.limit == 1.25
    assert first.value is not None
    assert first.value.number == save
    assert first.value.beside == "raw O_DIRECT 4x8 MiB"  # the fastest is the limit
    assert first.reached is reached


def test_who_is_not_as_fast_is_not_called_the_fastest_of_the_others():
    measured = Measured(nbytes={"1 GiB": 1 << 30})
    for name, seconds in (("holdtrue", 1.0), ("slow", 9.0), ("quick", 0.5), ("raw", 0.1)):
        measured.add("1 GiB", rounds.DURABLE, name, 0, seconds)
    found = next(
        o for o in targets.outcomes(measured) if "of the others over ours" in o.target.name
    )
    assert found.value is not None
    assert (found.value.number, found.value.beside) == (0.5, "quick")
    assert found.reached is False


def test_who_fails_is_shown_with_the_error(tmp_path):
    def broken(state, folder):
        raise RuntimeError("no such bucket")

    def nothing(state, folder):
        return None

    state, measured = build("10 x 10 KB"), Measured()
    before = {name: tensor.clone() for name, tensor in state.flat().items()}
    saves = Contender(name="broken", version="torch", save=broken)
    loads = Contender(
        name="lazy", version="torch", save=nothing, loads=(Load("lazy load", nothing),)
    )
    measures = (rounds.SAVE, rounds.WARM)
    rounds.run(state, [saves, loads], 2, tmp_path, measured, measures, lambda line: None)
    assert measured.failed["10 x 10 KB"]["broken"] == "RuntimeError: no such bucket"
    # Who restores nothing is found out, whatever it returns; the state is whole again.
    assert "were not restored" in measured.failed["10 x 10 KB"]["lazy"]
    assert all(tensor.equal(before[name]) for name, tensor in state.flat().items())
    failed = next(t for t in table.tables(measured) if t.title.startswith("What failed"))
    assert [row[0] for row in failed.rows] == ["broken", "lazy"]


def test_who_fails_behind_keeps_the_saves_in_front(tmp_path):
    def nothing(state, folder):
        pass

    class Full:
        def __init__(self, state, folder):
            raise OSError("too many open files")

    state, measured = build("10 x 10 KB"), Measured()
    one = Contender(name="front", version="torch", save=nothing, behind={"front, async": Full})
    rounds.run(state, [one], 2, tmp_path, measured, (rounds.SAVE, rounds.STALL), lambda line: None)
    assert measured.failed["10 x 10 KB"] == {"front, async": "OSError: too many open files"}
    assert set(measured.values["10 x 10 KB"][rounds.SAVE]["front"]) == {0, 1}


@pytest.mark.skipif(os.name != "posix", reason="processes are killed by signal on POSIX")
def test_who_needs_more_memory_than_there_is_is_killed_alone(tmp_path, monkeypatch):
    """The kernel's kill is put in here: a machine's memory is not a test's to fill."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\n[ $4 = moonclip ] && kill -KILL $$\nexit 0\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    place = tmp_path / "files"
    place.mkdir()
    state, measured = build("10 x 10 KB"), Measured()
    both = [
        Contender(name=name, version="torch", save=lambda state, folder: None)
        for name in (MOONCLIP, TENSORIZER)
    ]
    rounds.run(
        state, both, 2, tmp_path / "files", measured, (rounds.SAVE,), lambda line: None,
        partial(trial.refused, "1000 GiB", place),
    )  # fmt: skip
    assert measured.failed["10 x 10 KB"] == {MOONCLIP: trial.KILLED}
    assert set(measured.values["10 x 10 KB"][rounds.SAVE]) == {TENSORIZER}


def test_a_size_that_is_none_is_refused():
    assert sizes("4gib") == "4 GiB"
    assert sizes("5000x10KB") == sizes("5000") == "5000 x 10 KB"
    with pytest.raises(ValueError, match="is no size"):
        sizes("big")


@pytest.mark.parametrize("size", ["32 MiB", "128 MiB"])
def test_a_state_has_about_the_size_it_was_asked_for(size):
    state = build(size)
    assert state.nbytes == pytest.approx(int(size.split()[0]) << 20, rel=0.1)
    assert sum(t.nbytes for t in state.flat().values()) == state.nbytes
