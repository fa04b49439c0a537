"""Folder of a synthetic dataset: filled under a temporary name and renamed last, never over anything else."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from ...benchmark.core.errors import BenchError
from ..parts.marker import Marker, read_marker, write_marker

MIN_SIZE, MAX_SIZE, MAX_IMAGES = 64, 768, 5000


def check_settings(train: int, test: int, size: int) -> None:
    """Raises BenchError for numbers of images, or a side in px, that are out of range."""
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise BenchError(f"The size of synthetic images is {size} px; it must be {MIN_SIZE} to {MAX_SIZE}.")
    if not 20 <= train <= MAX_IMAGES or not 4 <= test <= MAX_IMAGES:
        raise BenchError(
            f"{train} training and {test} test images were asked for; there must be 20 to {MAX_IMAGES} and 4 to "
            f"{MAX_IMAGES}, so that five folds have both classes in every split."
        )


def write_folder(folder: Path, marker: Marker, draw: Callable[[Path, Marker], None]) -> Path:
    """Fills a temporary folder beside `folder` by `draw`, marks and renames it; keeps an equal copy that is there.

    Raises BenchError where real data or a copy with other settings is in the way, or nothing can be written.
    """
    if folder.exists():
        return keep_copy(folder, marker)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".synth-", dir=folder.parent))
    except OSError as problem:
        raise BenchError(f"{folder.parent} cannot be written ({problem.strerror}). Choose another --out.") from None
    try:
        draw(temporary, marker)
        write_marker(temporary, marker)
        temporary.chmod(0o755)
        try:
            temporary.rename(folder)
        except OSError:
            return keep_copy(folder, marker)  # another process was quicker
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def keep_copy(folder: Path, marker: Marker) -> Path:
    """The folder, if it is a copy with these settings. Raises BenchError if it is anything else."""
    stored = read_marker(folder)
    if stored is None:
        raise BenchError(f"{folder} exists and is not synthetic; it stays as it is. Choose another --out.")
    if stored != marker:
        pairs = [(k, v, vars(marker)[k]) for k, v in vars(stored).items() if v != vars(marker)[k]]
        differ = ", ".join(f"{k} {old} (now {new})" for k, old, new in pairs)
        raise BenchError(f"{folder} holds a copy with other settings: {differ}. Remove it or choose another --out.")
    return folder
