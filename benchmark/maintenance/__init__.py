"""Diagnosis of an installation and its data, and cleaning of a results folder."""
