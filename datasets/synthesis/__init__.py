"""Synthetic histology in the official layouts of the datasets."""
