"""Arrays in NPY and NPZ files, read without running any code in them and without taking more memory than is sane."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ...benchmark.core.errors import BenchError

ARRAY_FILES = (".npy", ".npz")
MAX_BYTES = 1 << 30  # a file that unpacks to more is refused before any memory is taken


def is_array_file(path: Path) -> bool:
    """Whether the name says NPY or NPZ."""
    return path.suffix.lower() in ARRAY_FILES


def read_array(path: Path, key: str) -> np.ndarray:
    """The one 2-D array of numbers in an NPY or NPZ file, in its own type.

    An NPZ holds one array, or the one that is meant under `key` or `arr_0`. A single channel, first or last,
    is taken off. Raises BenchError naming the file for
    pickles, damaged files and arrays that are not 2-D, are empty or hold no numbers.
    """
    with _reading(path, key):
        if path.suffix.lower() == ".npy":
            _check_bytes(path, path.stat().st_size)
            name, values = key, np.load(path, allow_pickle=False)
        else:
            name, values = _from_npz(path, key)
        if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):  # channels first or last, as networks give it
            values = values[0] if values.shape[0] == 1 else values[..., 0]
        if values.ndim != 2 or not values.size or values.dtype.kind not in "fiub":
            raise BenchError(f"{path}: '{name}' is {values.dtype} of shape {values.shape}, not a 2-D array of numbers.")
        return values


def array_shape(path: Path, key: str) -> tuple[int, int]:
    """(H, W) of the array that `read_array` reads. Raises BenchError as it does."""
    height, width = read_array(path, key).shape
    return height, width


def _from_npz(path: Path, key: str) -> tuple[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        _check_bytes(path, sum(member.file_size for member in archive.infolist()))
    with np.load(path, allow_pickle=False) as data:
        names = data.files
        name = next((n for n in (key, "arr_0") if n in names), names[0] if len(names) == 1 else None)
        if name is None:
            raise BenchError(f"{path} holds the arrays {', '.join(names) or '(none)'}: store one, or name it '{key}'.")
        return name, data[name]


def _check_bytes(path: Path, size: int) -> None:
    if size > MAX_BYTES:
        raise BenchError(f"{path} unpacks to {size / 1e9:.1f} GB, too much for one {path.suffix} file. Store one each.")


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    try:
        if not path.is_file():
            raise BenchError(f"{path} does not exist.")
        if path.stat().st_size == 0:
            raise BenchError(f"{path} is empty (0 bytes). Write the file again.")
        yield
    except BenchError:
        raise
    except Exception as problem:  # on damaged files zipfile and numpy raise whatever comes to pass
        reason = " ".join(str(problem).split()) or type(problem).__name__
        raise BenchError(f"{path} cannot be read as a {what}: {reason}. Write the file again.") from problem
