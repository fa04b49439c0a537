"""Disk-backed append-only buffer for per-image histograms, so that memory does not grow with the evaluation set."""

import mmap
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


class DiskBuffer:
    """Rows of `width` numbers of an unsigned type, appended in batches; in memory, or in a nameless file of a folder.

    The file has no name, so that it vanishes with the process, however that ends.
    """

    def __init__(self, width: int, dtype: Any, folder: Path | None = None) -> None:
        self.width, self.dtype = width, np.dtype(dtype)
        self._count = 0
        self._parts: list[np.ndarray] = []
        self._file = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as its rows

    def __len__(self) -> int:
        return self._count

    def append(self, rows: np.ndarray) -> None:
        """Adds rows (n, width) of whole numbers. Raises OverflowError for one that the type cannot hold."""
        if rows.shape[1:] != (self.width,):
            raise ValueError(f"rows of shape {rows.shape[1:]} where {self.width} numbers are expected")
        if rows.size and (rows.min() < 0 or rows.max() > np.iinfo(self.dtype).max):
            raise OverflowError(f"a count does not fit into {self.dtype}")
        self._count += len(rows)
        small = rows.astype(self.dtype)
        if self._file is None:
            self._parts.append(small)
        else:
            self._file.write(small.tobytes())

    def rows(self) -> np.ndarray:
        """All rows, (N, width), in the order they came; those of a file as a memory map."""
        if self._file is None:
            return np.concatenate(self._parts) if self._parts else np.zeros((0, self.width), self.dtype)
        if not self._count:
            return np.zeros((0, self.width), self.dtype)
        self._file.flush()
        return np.memmap(self._file, self.dtype, "r", shape=(self._count, self.width))


def release_pages(rows: np.ndarray) -> None:
    """Takes the pages of rows on disk out of memory; whoever asks again reads them again. Rows in memory stay."""
    mapped = getattr(rows, "_mmap", None)
    if mapped is not None and hasattr(mapped, "madvise"):
        mapped.madvise(mmap.MADV_DONTNEED)
