"""Shifts of the stain, level by level."""
