"""Scheduling of stages: order, backends, workers, GPU slots, claims and progress."""
