"""The datasets: one file each, registered by name. Importing this package imports no torch."""

from pathlib import Path

from ..benchmark.core.registry import Registry

DATASETS = Registry("dataset", __name__, Path(__file__).parent, "wsolbench.datasets")
register = DATASETS.register
