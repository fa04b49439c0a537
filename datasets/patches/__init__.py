"""Patches from whole-slide images."""
