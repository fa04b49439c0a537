"""What every script of this folder prints: rows of the speed table, each as one line of JSON or of text."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One ratio.

    ratio: ours against theirs as `what` and `peer` say, None when it was not taken. reach: the mark, `<= 1.3` or
    `>= 15`, or nothing for a number to know. holds: whether what must be true beside the ratio (equal numbers on both
    sides) is. seconds: medians by side. conditions: device, threads, backbone, size, batch and whatever else the ratio
    depends on.
    """

    what: str
    peer: str
    ratio: float | None
    reach: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    conditions: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    holds: bool = True

    @property
    def ok(self) -> bool | None:
        """Whether the mark was reached; None when the ratio was not taken or has no mark."""
        if self.ratio is None:
            return None
        if not self.holds:
            return False
        if not self.reach:
            return None
        sign, mark = self.reach.split()
        return self.ratio <= float(mark) if sign == "<=" else self.ratio >= float(mark)

    def to_json(self) -> dict[str, Any]:
        """The agreed keys."""
        row = {k: v for k, v in asdict(self).items() if k != "holds" and (k != "note" or v)}
        return {**row, "ok": self.ok}

    def to_line(self) -> str:
        """One line to read."""
        if self.ratio is None:
            return f"{self.what}: not taken ({self.note})"
        times = ", ".join(f"{name} {value:.4g} s" for name, value in self.seconds.items())
        about = ", ".join(f"{name} {value}" for name, value in self.conditions.items())
        mark = f"{self.reach}, {'reached' if self.ok else 'MISSED'}" if self.reach else "no mark"
        note = f" {self.note}" if self.note else ""
        return f"{self.what} against {self.peer}: {self.ratio:.3f} ({mark}); {times}; {about}.{note}"


def show(row: Row, as_json: bool) -> None:
    """Prints a row."""
    print(json.dumps(row.to_json()) if as_json else row.to_line(), flush=True)
