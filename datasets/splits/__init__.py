"""Published splits as data files: no code but this line."""
