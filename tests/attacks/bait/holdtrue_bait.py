"""Leaves a trace when it is imported: attacks name it, nothing may import it."""

import os
from pathlib import Path

Path(os.environ["HOLDTRUE_CANARY"]).touch()


class Net:
    pass
