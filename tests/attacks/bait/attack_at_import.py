"""Leaves a trace when it is imported; nothing but a test that failed would."""

import os
from pathlib import Path

Path(os.environ["HOLDTRUE_CANARY"]).touch()
