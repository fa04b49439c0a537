"""From a model to score maps, and from those to per-image histograms."""
