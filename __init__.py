"""wsolbench: a benchmark suite for weakly supervised object localization on histology images."""

__version__ = "0.1.0"
