"""The attacks, a module for each family or two; importing this registers all of them."""

from attacks.families import (
    dcp,
    indexes,
    manifests,
    numpy_files,
    pickles_that_confuse,
    pickles_that_exhaust,
    pickles_that_run,
    recipes,
    run_directories,
    runs,
    safetensors_headers,
    torch_files,
    zips,
)

__all__ = [
    "dcp",
    "indexes",
    "manifests",
    "numpy_files",
    "pickles_that_confuse",
    "pickles_that_exhaust",
    "pickles_that_run",
    "recipes",
    "run_directories",
    "runs",
    "safetensors_headers",
    "torch_files",
    "zips",
]
