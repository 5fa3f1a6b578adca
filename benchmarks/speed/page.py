"""The figures in `docs/performance.md`: a block that is made from the results, never by hand."""

from pathlib import Path

from benchmarks.speed import growth, table
from benchmarks.speed.growth_results import Grown
from benchmarks.speed.results import Results, setting
from benchmarks.speed.targets import outcomes

BEGIN, END = "<!-- measured: by `make bench` -->", "<!-- /measured -->"
GROWN, GROWN_END = "<!-- measured: by `python -m benchmarks growth` -->", "<!-- /growth -->"
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"


def block(results: Results) -> str:
    """All tables, the targets last."""
    found = [*table.tables(results.measured), table.target_table(outcomes(results.measured))]
    return f"{setting(results)}\n\n{table.markdown(found)}"


def alone(results: Results) -> str:
    """`speed.md`: the same as a page of its own."""
    return f"# Speed, measured\n\n{block(results)}\n"


def filled(text: str, results: Results) -> str:
    """The page's text with these results. Raises ValueError where it has no place for them."""
    return _between(text, BEGIN, END, block(results))


def grown(text: str, found: Grown) -> str:
    """The page's text with how the time grows. Raises ValueError where it has no place for it."""
    shown = table.Tabled("How the time grows", growth.HEAD, growth.rows(found.series))
    said = [f"{found.date}, `{found.command}`.", table.markdown([shown]), *found.skipped]
    return _between(text, GROWN, GROWN_END, "\n\n".join(said))


def _between(text: str, begin: str, end: str, made: str) -> str:
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"the page has to have {begin} and {end} once each")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n\n{made}\n\n{end}{rest.partition(end)[2]}"
