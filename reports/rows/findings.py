"""What a results folder holds for a report, and what of it could not be used."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .measures import EvidenceOf
from .row import Row
from .unfinished import Unfinished, unfinished_of


@dataclass
class Findings:
    """What a results folder holds for a report. `problems` says which rows and stages were left out and why.

    rows: the runs, and rows of several folds pooled (`pooled_of`).
    """

    rows: list[Row] = field(default_factory=list)
    evidence: EvidenceOf = field(default_factory=EvidenceOf)
    settings: dict[str, dict[str, str]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    failures: dict[str, dict[str, Any]] = field(default_factory=dict)
    records: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def runs(self) -> list[Row]:
        """The rows without the pooled ones."""
        return [row for row in self.rows if not row.pooled_of]

    @cached_property
    def unfinished(self) -> list[Unfinished]:
        """What failed or diverged and was not finished since."""
        return unfinished_of(self.failures)
