"""Published lists of Camelyon patches: parser of the file names, and both list formats, read strictly.

A list folder holds `fold-K/PART/class_labels.txt` and `localization.txt`, gzipped or not, PART being train, valcl,
valpx or test. No image is needed to read them.
"""

import gzip
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ...benchmark.core.errors import BenchError

LABELS, MASKS = "class_labels.txt", "localization.txt"
PARTS = 5  # published folds
LARGEST = 64_000_000  # bytes of an unpacked list; 50,000 rows of published names take 20 million
SIDE = 512  # px; side of a published patch, at level 0 of its slide
_SHARE = r"\d+(?:\.\d+)?(?:e-\d+)?"
_NAME = re.compile(
    r"(?P<kind>Patch|mask)_file_(?P<slide>[A-Za-z0-9_-]+)\.(?P<suffix>[a-z]+)_"
    r"(?:reg_(?P<region>\d+)_row_(?P<row>\d+)_)?patch_(?P<patch>\d+)_x_(?P<x>\d+)_y_(?P<y>\d+)_"
    rf"tissue_(?P<tissue>{_SHARE})_(?:metastatic_(?P<metastatic>{_SHARE})_)?w_(?P<width>\d+)_h_(?P<height>\d+)\.png",
    re.ASCII,
)
_SLIDE = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


@dataclass(frozen=True)
class PatchName:
    """What the file name of a published patch says.

    slide: path of the slide with `-` for `/` and without its suffix, as in `training-tumor-tumor_009`.
    patch: a number; of its row in a tumour region, else of its slide. x, y: upper left corner in px at level 0.
    tissue, metastatic: shares of the patch in [0, 1]; metastatic None for a patch of a slide without metastases.
    region, row: the annotated region and the row in it; None where metastatic is. width, height: px.
    suffix: of the slide's file, `tif` in all published names. Raises BenchError, when made, for a slide, suffix or
    numbers that a name cannot hold.
    """

    slide: str
    patch: int
    x: int
    y: int
    tissue: float
    metastatic: float | None = None
    region: int | None = None
    row: int | None = None
    width: int = SIDE
    height: int = SIDE
    suffix: str = "tif"

    def __post_init__(self) -> None:
        if not (self.suffix.isascii() and self.suffix.isalpha() and self.suffix.islower()):
            raise BenchError(f"'{self.suffix}' cannot stand in a patch name as the suffix of a slide.")
        if not _SLIDE.fullmatch(self.slide):
            raise BenchError(f"'{self.slide}' cannot stand in a patch name: use letters, digits, '_' and '-' only.")
        if (self.region is None) != (self.row is None):
            raise BenchError(f"A patch of {self.slide} has a region or a row, not both. Give both or none.")
        shares = (self.tissue, 0.0 if self.metastatic is None else self.metastatic)
        if not all(0 <= s <= 1 for s in shares):
            raise BenchError(f"A patch of {self.slide} has the shares {shares}, which are not in [0, 1].")
        counts = (self.patch, self.x, self.y, self.region or 0, self.row or 0, self.width - 1, self.height - 1)
        if min(counts) < 0:
            raise BenchError(f"A patch of {self.slide} has a negative number or no extent: {self}.")

    @classmethod
    def parse(cls, name: str) -> "PatchName":
        """Reads the name of a patch (`Patch_file_…png`) or of its mask (`mask_file_…png`), folders before it ignored.

        Raises BenchError for any other name.
        """
        match = _NAME.fullmatch(name.rpartition("/")[2])
        if not match:
            raise BenchError(
                f"'{name}' is not the name of a Camelyon patch, which is Patch_file_SLIDE.tif_[reg_N_row_N_]patch_N_"
                "x_N_y_N_tissue_F_[metastatic_F_]w_N_h_N.png."
            )
        text = match.groupdict()
        numbers = {k: int(text[k]) for k in ("patch", "x", "y", "region", "row", "width", "height") if text[k]}
        metastatic = None if text["metastatic"] is None else float(text["metastatic"])
        share = float(text["tissue"])
        return cls(slide=text["slide"], suffix=text["suffix"], tissue=share, metastatic=metastatic, **numbers)

    @property
    def image_name(self) -> str:
        """The file name of the image; `parse` gives the same PatchName back."""
        return f"Patch_{self._tail()}"

    @property
    def mask_name(self) -> str:
        """The file name of the mask, beside the image."""
        return f"mask_{self._tail()}"

    @property
    def slide_id(self) -> str:
        """The slide without its folders: `tumor_009`."""
        return self.slide.rpartition("-")[2]

    @property
    def id(self) -> str:
        """A short unique name of the patch: slide, region, row, number and corner."""
        return f"{self.slide_id}_{self._place()}"

    def folder(self, test: bool) -> PurePosixPath:
        """Where the published layout keeps the patch, relative to `w-512xh-512`. `test`: of the official test set."""
        if self.metastatic:
            return PurePosixPath("metastatic-patches", *self.slide.split("-"))
        return PurePosixPath("normal-patches", "split_1/fold_0/test" if test else "split_0/fold_0/train")

    def _place(self) -> str:
        region = "" if self.region is None else f"reg_{self.region}_row_{self.row}_"
        return f"{region}patch_{self.patch}_x_{self.x}_y_{self.y}"

    def _tail(self) -> str:
        share = "" if self.metastatic is None else f"metastatic_{float(self.metastatic)!r}_"
        shares = f"tissue_{float(self.tissue)!r}_{share}"
        return f"file_{self.slide}.{self.suffix}_{self._place()}_{shares}w_{self.width}_h_{self.height}.png"


class Patch(NamedTuple):
    """One line of the lists: paths relative to the data root, in posix form; `mask` None where nothing is declared."""

    path: str
    label: int
    mask: str | None
    name: PatchName


class FoldRows(NamedTuple):
    """The rows of one published fold; `pixel_val` holds the paths of valpx, a part of `val`."""

    train: tuple[Patch, ...]
    val: tuple[Patch, ...]
    test: tuple[Patch, ...]
    pixel_val: frozenset[str]


def mask_beside(path: str) -> str:
    """The path of the mask of a patch in the published layout: `mask_file…` for `Patch_file…`, same folder."""
    folder, slash, name = path.rpartition("/")
    return f"{folder}{slash}mask_{name.removeprefix('Patch_')}"


def find_lists(data_root: Path, names: Sequence[str], home: str) -> tuple[Path | None, list[Path]]:
    """The folder of lists called one of `names`, and all places that were looked at. `home`: the folder of the images.

    Raises BenchError if there are several, which might say different things.
    """
    likely = ("", "splits", "folds", "folds/wsol-done-right-splits", "wsol-done-right-splits", home, f"{home}/folds")
    places = [data_root / place / name for place in likely for name in names]
    folders = {(p.stat().st_dev, p.stat().st_ino): p for p in reversed(places) if any(p.glob("fold-[0-9]/*"))}
    if len(folders) > 1:
        both = "\n  ".join(str(p) for p in folders.values())
        raise BenchError(f"Several folders of lists are in {data_root}:\n  {both}\nKeep the one that is meant.")
    return next(iter(folders.values()), None), places


def read_labels(file: Path, home: str) -> dict[str, Patch]:
    """`class_labels.txt` (`path,label`) as path to patch, masks left None. Raises BenchError naming file and line."""
    patches: dict[str, Patch] = {}
    for where, cells in _lines(file):
        if len(cells) != 2 or cells[1] not in ("0", "1"):
            raise BenchError(f"{where}: {_line(cells)} is not 'path,label' with label 0 or 1.")
        path = cells[0]
        _check_place(where, path, home)
        if path in patches:
            raise BenchError(f"{where}: {path} occurs twice.")
        try:
            patches[path] = Patch(path, int(cells[1]), None, PatchName.parse(path))
        except BenchError as problem:
            raise BenchError(f"{where}: {problem}") from None
        if not path.rpartition("/")[2].startswith("Patch_"):
            raise BenchError(f"{where}: {path} is a mask, not a patch.")
    return patches


def read_masks(file: Path, home: str) -> dict[str, str | None]:
    """`localization.txt` (`image,mask,ignore`) as image to mask, None where the field is empty or says `None`.

    Raises BenchError naming file and line, also for an ignore mask, of which no rule is published.
    """
    masks: dict[str, str | None] = {}
    for where, cells in _lines(file):
        if len(cells) != 3:
            raise BenchError(f"{where}: {_line(cells)} is not 'image,mask,ignore'.")
        image, mask, ignore = cells
        if ignore not in ("", "None"):
            raise BenchError(f"{where}: the ignore mask {ignore!r} cannot be used; the field must be empty.")
        _check_place(where, image, home)
        if image in masks:
            raise BenchError(f"{where}: {image} occurs twice.")
        masks[image] = None if mask in ("", "None") else mask
        if masks[image] is not None:
            _check_place(where, mask, home)
            if mask.rpartition("/")[2] != mask_beside(image).rpartition("/")[2]:
                raise BenchError(f"{where}: {mask} is not the mask of {image}; their names differ.")
    return masks


def read_part(folder: Path, home: str) -> tuple[Patch, ...] | None:
    """The rows of one part of a fold, both lists compared; None if the folder has no list of labels.

    Without `localization.txt` (it is not published for the test set) the mask of a tumour patch follows from its name.
    Raises BenchError where the lists disagree, and for rows that contradict themselves (see `check_patches`).
    """
    labels_file, masks_file = _either(folder / LABELS), _either(folder / MASKS)
    if not labels_file:
        if masks_file:
            raise BenchError(f"{folder} has {masks_file.name} but no {LABELS}, so the labels are unknown.")
        return None
    rows = read_labels(labels_file, home)
    if masks_file:
        masks = read_masks(masks_file, home)
        if unequal := sorted(rows.keys() ^ masks.keys()):
            raise BenchError(
                f"{labels_file} and {masks_file.name} beside it disagree: {_some(unequal, 'patches')} in one only."
            )
    else:
        masks = {path: mask_beside(path) if row.label else None for path, row in rows.items()}
    patches = tuple(Patch(path, label, masks[path], name) for path, label, _, name in rows.values())
    check_patches(patches, str(masks_file or labels_file))
    return patches


def check_patches(rows: Iterable[Patch], where: str) -> None:
    """Raises BenchError for tumour patches without a mask, normal ones with one, labels that the names contradict."""
    maskless = [r.path for r in rows if r.label and not r.mask]
    if maskless:
        raise BenchError(
            f"{where}: {_some(maskless, 'tumour patches')} without a mask. A tumour patch is never taken for all "
            "background: name its mask in the list, or leave the patch out."
        )
    if masked := [r.path for r in rows if r.mask and not r.label]:
        raise BenchError(f"{where}: {_some(masked, 'normal patches')} with a mask, which normal patches do not have.")
    if wrong := [r.path for r in rows if bool(r.label) != bool(r.name.metastatic)]:
        raise BenchError(
            f"{where}: {_some(wrong, 'patches')} whose label contradicts the metastatic share in the name "
            "(tumour patches have one above 0, normal patches none)."
        )


class Lists:
    """The lists of one folder, which holds `fold-0` to `fold-4`; each is read once, when asked for."""

    def __init__(self, folder: Path, home: str) -> None:
        self.folder, self.home = folder, home
        self._parts: dict[str, tuple[Patch, ...] | None] = {}

    def part(self, fold: int, part: str) -> tuple[Patch, ...] | None:
        """The rows of train, valcl, valpx or test of a fold; None without a list. Raises BenchError as `read_part`."""
        name = f"fold-{fold}/{part}"
        if name not in self._parts:
            self._parts[name] = read_part(self.folder / name, self.home)
        return self._parts[name]

    def rows(self, fold: int) -> FoldRows:
        """The rows of a published fold.

        The training lists are not distributed: training patches are those of the valcl lists of the other folds. A
        training list that is there must agree, and serves alone where not all valcl lists are there.
        Raises BenchError for a list that is missing, or at odds with others.
        """
        validation, train = self.validation(), self.part(fold, "train")
        missing = [k for k in range(PARTS) if k not in validation]
        if fold in missing or (missing and train is None):
            gone = ", ".join(f"fold-{k}/valcl/{LABELS}" for k in missing)
            raise BenchError(
                f"{self.folder} lacks {gone}. The training list of a fold is not distributed but made of the valcl "
                "lists of the other folds, so all five are needed: copy the whole folder."
            )
        val = validation[fold]
        if not missing:
            rest = tuple(row for k in range(PARTS) if k != fold for row in validation[k])
            if train is not None and (unequal := sorted({r.path for r in set(train) ^ set(rest)})):
                raise BenchError(
                    f"{self.folder}/fold-{fold}/train does not hold the patches of the other folds' valcl lists: "
                    f"{_some(unequal, 'patches')} in one only, or with another mask."
                )
            train = rest
        elif both := sorted({r.path for r in train or ()} & {r.path for r in val}):
            raise BenchError(f"{self.folder}/fold-{fold}: {_some(both, 'patches')} both in train and in valcl.")
        return FoldRows(train or (), val, self.test(fold), self._pixel_val(fold, val))

    def validation(self) -> dict[int, tuple[Patch, ...]]:
        """Fold to its valcl rows, of those that are there. Raises BenchError if a patch is in two of them."""
        parts = {k: rows for k in range(PARTS) if (rows := self.part(k, "valcl")) is not None}
        seen: dict[str, int] = {}
        for k, rows in parts.items():
            if both := [r.path for r in rows if r.path in seen]:
                folds = f"fold {seen[both[0]]} and fold {k}"
                raise BenchError(f"{self.folder}: {_some(both, 'patches')} in the valcl lists of both {folds}.")
            seen.update((r.path, k) for r in rows)
        return parts

    def pool(self) -> tuple[Patch, ...]:
        """All patches outside the test set, from the five valcl lists or one of them with its training list."""
        validation = self.validation()
        whole = [k for k in validation if len(validation) == PARTS or self.part(k, "train") is not None]
        rows = self.rows(whole[0] if whole else 0)  # without any, it raises and names the lists that are missing
        return (*rows.val, *rows.train)

    def test(self, fold: int = 0) -> tuple[Patch, ...]:
        """The official test set: the list of the fold or, as all folds share it, of the first that has one."""
        for k in (fold, *range(PARTS)):
            if (rows := self.part(k, "test")) is not None:
                return rows
        raise BenchError(f"{self.folder} has no test list: fold-0/test/{LABELS} is needed. Copy the whole folder.")

    def _pixel_val(self, fold: int, val: Sequence[Patch]) -> frozenset[str]:
        folder, rows = self.folder / f"fold-{fold}" / "valpx", self.part(fold, "valpx")
        if rows is None:
            raise BenchError(f"{folder} lacks {LABELS}, the validation patches whose masks may be read. Copy it too.")
        inside: Mapping[str, Patch] = {r.path: r for r in val}
        if outside := [r.path for r in rows if inside.get(r.path) != r]:
            raise BenchError(f"{folder}: {_some(outside, 'patches')} that valcl does not hold, or holds otherwise.")
        return frozenset(r.path for r in rows)


def write_part(folder: Path, rows: Sequence[Patch], no_mask: str = "") -> None:
    """Writes both lists of a part in the published formats; `read_part` gives the rows back.

    no_mask: what stands for the mask of a normal patch; nothing, or `None` as in the published test lists.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LABELS).write_text("".join(f"{r.path},{r.label}\n" for r in rows), encoding="utf-8")
    (folder / MASKS).write_text("".join(f"{r.path},{r.mask or no_mask},\n" for r in rows), encoding="utf-8")


def _lines(file: Path) -> Iterator[tuple[str, list[str]]]:
    """Place and cells of each line that is not empty."""
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as handle:
            raw = handle.read(LARGEST + 1)
        if len(raw) > LARGEST:
            raise BenchError(f"{file} holds more than {LARGEST / 1e6:.0f} MB of text, so it is no list of patches.")
        lines = raw.decode("utf-8-sig").splitlines()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as problem:
        raise BenchError(f"{file} cannot be read as a list ({problem}). Copy it again.") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"{file}, line {number}", line.split(",")


def _line(cells: Sequence[str]) -> str:
    """A line for a message."""
    text = ",".join(cells)
    return repr(text if len(text) <= 300 else f"{text[:300]}…")


def _check_place(where: str, path: str, home: str) -> None:
    """The path must stay below the folder of its dataset."""
    if not path.startswith(f"{home}/") or "//" in path or "/." in path or "\\" in path or not path.isprintable():
        raise BenchError(f"{where}: {_line([path])} is not a path below {home}/, relative to the data root.")


def _either(file: Path) -> Path | None:
    """The list, or its gzipped form."""
    packed = file.with_name(f"{file.name}.gz")
    return file if file.is_file() else packed if packed.is_file() else None


def _some(paths: Sequence[str], what: str) -> str:
    """`12 tumour patches (the first: …)`."""
    return f"{len(paths)} {what}, the first:\n  " + "\n  ".join(paths[:5]) + "\n "
