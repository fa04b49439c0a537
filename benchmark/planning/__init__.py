"""From names to a graph of stages, each with the key of its identity. Imports no torch."""
