"""The methods: one file each, registered by name. Importing this package does not import torch."""

from pathlib import Path

from ..benchmark.registry import Registry

METHODS = Registry("method", __name__, Path(__file__).parent, "wsolbench.methods")
register = METHODS.register
