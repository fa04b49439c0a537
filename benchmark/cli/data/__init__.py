"""The verbs of `bench data`."""
