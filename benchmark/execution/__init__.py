"""Who runs stages, where, and in which order."""
