"""Whole-slide images: slides, annotations, tissue."""
