"""Versions of what makes numbers; stages of other versions are never mixed in. Methods and datasets have their own."""

HARNESS_VERSION = 3  # raised when training or scoring itself gives other numbers, or a record holds more
