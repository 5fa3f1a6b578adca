"""Where the corpus of published files lies; tests that need it skip where it is absent."""

import os
from pathlib import Path

import pytest

CORPUS = Path(
    os.environ.get("HOLDTRUE_CORPUS", Path(__file__).resolve().parents[3] / "shared/corpus")
)
needs_corpus = pytest.mark.skipif(not CORPUS.is_dir(), reason=f"no corpus at {CORPUS}")
