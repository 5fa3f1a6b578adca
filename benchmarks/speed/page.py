"""The figures in `docs/performance.md`: a block that is made from the results, never by hand."""

from pathlib import Path

from benchmarks.speed import table
from benchmarks.speed.results import Results, setting
from benchmarks.speed.targets import outcomes

BEGIN, END = "<!-- measured: by `make bench` -->", "<!-- /measured -->"
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
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"the page has to have {BEGIN} and {END} once each")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{block(results)}\n\n{END}{rest.partition(END)[2]}"
