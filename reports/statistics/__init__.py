"""Intervals and spreads of what several runs gave."""
