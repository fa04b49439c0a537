"""Anybody's score maps and masks as files: finding the pairs and reading them, with nothing silently repaired."""

import csv
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..datasets import masks
from ..datasets.decode import decode_grey
from .errors import BenchError, did_you_mean

MAP_FILES = (".npz", ".png")
MASK_FILES = (".png", ".bmp", ".tif", ".tiff", ".npz")
MASK_SUFFIXES = ("_anno", "_mask")  # GlaS calls the mask of train_1.bmp train_1_anno.bmp
MAX_BYTES = 1 << 30  # an npz that unpacks to more is refused before any memory is taken
_KNOWN_SUFFIXES = {*MAP_FILES, *MASK_FILES, ".jpg", ".jpeg"}


@dataclass(frozen=True)
class MapPair:
    """One image to score: its id (the stem of the map's file name), its map and its mask."""

    id: str
    map: Path
    mask: Path


@dataclass(frozen=True)
class LabelRow:
    """What a labels CSV says of an image; `prediction` None without that column, `group` is the id without it."""

    label: str
    prediction: str | None
    group: str


def pair_files(maps: Path, masks: Path, ids: Sequence[str] | None = None) -> list[MapPair]:
    """Maps and masks matched by file stem, sorted by id. `ids` limits both folders to these images.

    The mask of `a.npz` is `a_anno.*` or `a_mask.*` if there is one (a plain `a.*` beside it is then the image), else
    `a.*`. Raises BenchError for a missing or empty folder, two files with one stem, and a map without mask or a mask
    without map.
    """
    map_files, mask_files = _stems(maps, MAP_FILES, "maps"), _stems(masks, MASK_FILES, "masks")
    found: dict[str, Path] = {}
    for name in map_files:
        mask = next(
            (mask_files[s] for s in [name + suffix for suffix in MASK_SUFFIXES] + [name] if s in mask_files), None
        )
        if mask:
            found[name] = mask
    wanted = list(map_files) if ids is None else list(ids)
    _complain([i for i in wanted if i not in map_files], f"image has no map in {maps}", f"images have no map in {maps}")
    _complain([i for i in wanted if i not in found], f"map has no mask in {masks}", f"maps have no mask in {masks}")
    if ids is None:
        used = set(found.values())
        shadowed = {s for s in mask_files if any(s + suffix in mask_files for suffix in MASK_SUFFIXES)}
        left = [s for s, path in mask_files.items() if path not in used and s not in shadowed]
        advice = " To score only some of the masks, list their images with --labels."
        _complain(left, f"mask has no map in {maps}", f"masks have no map in {maps}", advice)
    return [MapPair(i, map_files[i], found[i]) for i in sorted(wanted)]


def _stems(folder: Path, kinds: tuple[str, ...], what: str) -> dict[str, Path]:
    if not folder.is_dir():
        raise BenchError(f"The folder of {what} {folder} does not exist.")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in kinds or path.name.startswith(".") or not path.is_file():
            continue
        if path.stem in found:
            raise BenchError(f"{folder} has two {what} of one name: {found[path.stem].name} and {path.name}. Keep one.")
        found[path.stem] = path
    if not found:
        raise BenchError(f"{folder} holds no {what}: they are files ending in {', '.join(kinds)}.")
    return found


def _complain(names: list[str], one: str, many: str, advice: str = "") -> None:
    if names:
        some = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
        raise BenchError(
            f"{len(names)} {one if len(names) == 1 else many}: {some}. A map and its mask share the file stem; the "
            f"mask may add {' or '.join(MASK_SUFFIXES)}.{advice}"
        )


def read_map(path: Path) -> np.ndarray:
    """A score map as (h, w) float64: npz values as stored, 8-bit grey / 255, 16-bit grey / 65535.

    An npz holds one array, or the map under `map` or `arr_0`. Raises BenchError naming the file for anything else:
    colour or palette images, pickles, damaged files, arrays that are not 2-D, values that are NaN or infinite.
    """
    if path.suffix.lower() != ".npz":
        return decode_grey(path)
    with _reading(path, "score map"):
        values = _read_array(path, "map").astype(np.float64)
    if not np.isfinite(values).all():
        raise BenchError(f"{path} is not finite: {int((~np.isfinite(values)).sum())} values are NaN or infinite.")
    return values


def read_mask(path: Path) -> np.ndarray:
    """A mask as (H, W) bool. Raises BenchError as `datasets.masks.read_mask` does."""
    try:
        return masks.read_mask(path).foreground
    except BenchError as problem:
        more = f"If this is the image, its mask needs the same stem, or one that adds {' or '.join(MASK_SUFFIXES)}."
        raise BenchError(f"{problem} {more}") from None


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except BenchError:
        raise
    except Exception as problem:  # on damaged files zipfile and numpy raise whatever comes to pass
        reason = " ".join(str(problem).split()) or type(problem).__name__
        raise BenchError(f"{path} cannot be read as a {what}: {reason}. Write the file again.") from problem


def _read_array(path: Path, key: str) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())
    if size > MAX_BYTES:
        raise BenchError(f"{path} unpacks to {size / 1e9:.1f} GB, too much for one map. Store one map a file.")
    with np.load(path, allow_pickle=False) as data:
        names = data.files
        name = next((n for n in (key, "arr_0") if n in names), names[0] if len(names) == 1 else None)
        if name is None:
            raise BenchError(f"{path} holds the arrays {', '.join(names) or '(none)'}: store one, or name it '{key}'.")
        values = data[name]
    if values.ndim != 2 or not values.size or values.dtype.kind not in "fiub":
        raise BenchError(f"{path}: '{name}' is {values.dtype} of shape {values.shape}, not a 2-D array of numbers.")
    return values


def read_labels(path: Path) -> dict[str, LabelRow]:
    """A CSV with the columns id and label, and perhaps prediction and group, by id; an id may be given as a file name.

    Raises BenchError, naming the line, for a file that cannot be read, missing or unknown columns, an empty field or an
    id that occurs twice.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            lines = [[field.strip() for field in row] for row in csv.reader(handle)]
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise BenchError(f"The labels {path} cannot be read: {problem}.") from None
    columns = lines[0] if lines else []
    known = ("id", "label", "prediction", "group")
    for name in columns:
        if name not in known:
            raise BenchError(f"{path} has a column '{name}'.{did_you_mean(name, known)}")
    if missing := [name for name in known[:2] if name not in columns]:
        raise BenchError(
            f"{path} has no column '{missing[0]}': its first line must name id,label[,prediction][,group]."
        )
    rows: dict[str, LabelRow] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not any(line):
            continue
        if len(line) != len(columns) or not all(line):
            raise BenchError(f"{path}, line {number}: needs a value in each of the columns {', '.join(columns)}.")
        row = dict(zip(columns, line, strict=True))
        name = Path(row["id"]).stem if Path(row["id"]).suffix.lower() in _KNOWN_SUFFIXES else row["id"]
        if name in rows:
            raise BenchError(f"{path}, line {number}: the id '{name}' occurs twice.")
        rows[name] = LabelRow(row["label"], row.get("prediction"), row.get("group", name))
    if not rows:
        raise BenchError(f"{path} names no image.")
    return rows
