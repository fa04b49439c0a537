"""Marker file of a synthetic dataset, so that nobody takes its images for the real ones."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ...benchmark.core.errors import BenchError
from ...benchmark.core.files import read_json, write_json

MARKER = "SYNTHETIC.json"


@dataclass(frozen=True)
class Marker:
    """What was generated: generator version, seed, number of images by split, side in px."""

    version: int
    seed: int
    train: int
    test: int
    size: int

    @property
    def note(self) -> str:
        """The line every table and figure of such data carries."""
        return f"SYNTHETIC images (seed {self.seed}, {self.train} + {self.test}); they say nothing about real tissue"


def read_marker(folder: Path) -> Marker | None:
    """The marker of a folder, None for real data. Raises BenchError if it is damaged."""
    path = folder / MARKER
    if not path.is_file():
        return None
    try:
        stored = read_json(path)
    except RecursionError:
        stored = None
    names = {f.name for f in fields(Marker)}
    if not isinstance(stored, dict) or any(not isinstance(stored.get(n), int) for n in names):
        raise BenchError(f"{path} does not say {', '.join(sorted(names))}. Remove the folder and generate it again.")
    return Marker(**{n: stored[n] for n in names})


def write_marker(folder: Path, marker: Marker) -> None:
    """Marks a folder as synthetic."""
    write_json(folder / MARKER, {"generator": "bench data synth", **asdict(marker)})
