"""GlaS: colon glands, benign or malignant, from the MICCAI 2015 gland segmentation challenge, read as downloaded."""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import ClassVar, NamedTuple

from ..benchmark.core.errors import BenchError
from .base import Dataset, DatasetCard, Item, Manifest, check_manifest, register, shared_groups
from .masks.reader import MaskRule
from .parts.folds import choose_pixel_val, deal_images, divide_groups
from .parts.marker import Marker, read_marker

FOLDER = "Warwick QU Dataset (Released 2016_07_08)"
GRADES = "Grade.csv"
CLASSES = ("benign", "malignant")
PARTS = 5
IMAGES = {"train": 85, "testA": 60, "testB": 20}
# Images of (benign, malignant) by split, in folds 0 to 3 and in fold 4.
FOLD_COUNTS = {"train": (29, 38), "val": (8, 10), "test": (37, 43)}
FOLD_4_COUNTS = {"train": (32, 40), "val": (5, 8), "test": (37, 43)}
_NAME = re.compile(r"(train|testA|testB)_([1-9][0-9]*)")


class Graded(NamedTuple):
    """One line of Grade.csv."""

    name: str
    label: int
    patient: str

    @property
    def official_test(self) -> bool:
        """Whether the challenge uses the image for testing."""
        return not self.name.startswith("train")


@register(
    "glas",
    version=1,
    classes=("benign", "malignant"),
    folds=("0", "1", "2", "3", "4", "grouped-0", "grouped-1", "grouped-2", "grouped-3", "grouped-4"),
    images="85 train, 80 test",
    licence="research only, no commercial use",
)
class Glas(Dataset):
    """Colon glands, benign or malignant; every gland is foreground (GlaS, MICCAI 2015).

    Folds 0 to 4 are the published ones, which share patients; grouped-0 to grouped-4 divide the patients of all 165
    images, since most training patients are in the official test set too.
    """

    card: ClassVar[DatasetCard] = DatasetCard(
        name="glas",
        version=1,
        classes=CLASSES,
        positive_class=1,
        region_classes=(True, True),
        foreground="every gland, whatever its grade",
        group="patient",
        licence="research purposes only, no commercial use",
        citation="Sirinukunwattana et al., Gland segmentation in colon histology images: The GlaS challenge contest, "
        "Medical Image Analysis 35 (2017) 489-502, doi:10.1016/j.media.2016.08.008",
        mask_rule=MaskRule(meaning="instances"),  # every gland has a number, 0 is everything else
    )
    folds: ClassVar[tuple[str, ...]] = tuple([str(k) for k in range(PARTS)] + [f"grouped-{k}" for k in range(PARTS)])

    def manifest(self, fold: str) -> Manifest:
        """The rows of a fold. Raises BenchError for a missing, incomplete or altered copy, or an unknown fold."""
        if fold not in self.folds:
            self.expand_folds([fold])  # explains; a scheme's name is no fold either
            raise BenchError(f"'{fold}' names {PARTS} folds of {self.card.name}; one is needed, such as {fold}-0.")
        folder = find_folder(self.data_root)
        marker = read_marker(folder)
        rows = read_grades(folder / GRADES)
        _check_images(folder, rows, marker)
        scheme, _, number = fold.rpartition("-")
        splits = _grouped_splits(rows, int(number)) if scheme else _image_splits(rows, int(number), marker is not None)
        pixel_val = _published_pixel_val() if not scheme and marker is None else _chosen_pixel_val(rows, splits)
        items = tuple(
            Item(
                id=row.name,
                image=folder / f"{row.name}.bmp",
                mask=folder / f"{row.name}_anno.bmp",
                label=row.label,
                group=row.patient,
                split=splits[row.name],
                pixel_val=splits[row.name] == "val" and row.name in pixel_val,
            )
            for row in rows
        )
        about = _split_notes(items, rows, scheme, marker)
        notes = (marker.note, *about) if marker else about
        leaks = frozenset() if scheme else frozenset({"groups"})
        manifest = check_manifest(Manifest(self.card, fold, items, marker is not None, notes, about, leaks))
        if marker is None and not scheme:
            _check_fold(manifest)
        return manifest


def find_folder(data_root: Path) -> Path:
    """The folder of the official download, blanks or underscores in its name. Raises BenchError if there is none."""
    names = (FOLDER, FOLDER.replace(" ", "_"))
    places = [
        data_root,
        *(base / name for base in (data_root, data_root / "GLAS", data_root / "glas") for name in names),
    ]
    # by inode: links, and GLAS and glas on a disk that ignores case, are one copy
    folders = {(p.stat().st_dev, p.stat().st_ino): p for p in reversed(places) if (p / GRADES).is_file()}
    if len(folders) > 1:
        both = "\n  ".join(str(p) for p in folders.values())
        raise BenchError(f"Several copies of glas are in {data_root}:\n  {both}\nPoint --data-root at one of them.")
    if folders:
        return next(iter(folders.values()))
    bare = [p for p in places[1:] if p.is_dir()]
    if bare:
        raise BenchError(f"{bare[0]} has no {GRADES}: the download is incomplete. Unpack the archive again.")
    raise BenchError(
        f"No GlaS dataset in {data_root.resolve()}: looked for '{FOLDER}' (or with underscores) there and in GLAS/. "
        "Unpack warwick_qu_dataset_released_2016_07_08.zip there, point --data-root at it, or make a synthetic copy "
        f"with `bench data synth --out {data_root}`."
    )


def read_grades(path: Path) -> list[Graded]:
    """The lines of Grade.csv in the order train, testA, testB by number. Raises BenchError for a line it cannot use."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise BenchError(f"{path} is not a text file. Unpack the archive again.") from None
    rows: dict[str, Graded] = {}
    for number, cells in enumerate(csv.reader(lines), start=1):
        cells = [c.strip() for c in cells]  # the file has a blank after each comma
        if number == 1 or not any(cells):
            continue
        if len(cells) < 3 or not _NAME.fullmatch(cells[0]) or cells[2] not in CLASSES or not cells[1]:
            raise BenchError(
                f"{path}, line {number}: {','.join(cells)!r} is not 'name, patient, benign|malignant, …'. "
                "The copy is damaged: unpack the archive again."
            )
        if cells[0] in rows:
            raise BenchError(f"{path}, line {number}: {cells[0]} occurs twice. Unpack the archive again.")
        rows[cells[0]] = Graded(cells[0], CLASSES.index(cells[2]), cells[1])
    return sorted(rows.values(), key=lambda r: _order(r.name))


def published_folds() -> dict[str, tuple[int, bool]]:
    """Training image to (the published fold that validates on it, whether its mask is used there)."""
    text = resources.files(f"{__package__}.splits").joinpath("glas.csv").read_text(encoding="utf-8")
    return {r["image"]: (int(r["validation_fold"]), r["pixel_val"] == "1") for r in csv.DictReader(text.splitlines())}


def _order(name: str) -> tuple[int, int]:
    part, _, number = name.partition("_")
    return list(IMAGES).index(part), int(number)


def _check_images(folder: Path, rows: Sequence[Graded], marker: Marker | None) -> None:
    """The names in Grade.csv must be exactly those of the real dataset, or as many as the marker of a copy says."""
    if marker:
        counts = Counter("test" if r.official_test else "train" for r in rows)
        if (counts["train"], counts["test"]) != (marker.train, marker.test):
            raise BenchError(
                f"{folder / GRADES} lists {counts['train']} + {counts['test']} images, its marker says "
                f"{marker.train} + {marker.test}. Remove {folder} and run `bench data synth` again."
            )
        return
    expected = {f"{part}_{k}" for part, n in IMAGES.items() for k in range(1, n + 1)}
    names = {r.name for r in rows}
    if names != expected:
        wrong = sorted(expected - names, key=_order) or sorted(names - expected, key=_order)
        what = "lacks" if expected - names else "has the unknown image"
        raise BenchError(
            f"{folder / GRADES} lists {len(names)} images instead of {len(expected)} (85 train, 60 testA, 20 testB); "
            f"it {what} {', '.join(wrong[:5])}. This is not the official dataset: download it again."
        )


def _image_splits(rows: Sequence[Graded], fold: int, synthetic: bool) -> dict[str, str]:
    """Image to split in the published manner: disjoint validation sets over the training images, official test set."""
    if synthetic:  # published names mean nothing here: the same kind of folds, dealt by class
        validation = deal_images({r.name: r.label for r in rows if not r.official_test}, PARTS)
    else:
        validation = {name: k for name, (k, _) in published_folds().items()}
    return {r.name: "test" if r.official_test else "val" if validation[r.name] == fold else "train" for r in rows}


def _grouped_splits(rows: Sequence[Graded], fold: int) -> dict[str, str]:
    part = divide_groups([(r.label, r.patient) for r in rows], PARTS)
    roles = {fold: "test", (fold + 1) % PARTS: "val"}
    return {r.name: roles.get(part[r.patient], "train") for r in rows}


def _published_pixel_val() -> frozenset[str]:
    return frozenset(name for name, (_, pixel_val) in published_folds().items() if pixel_val)


def _chosen_pixel_val(rows: Sequence[Graded], splits: dict[str, str]) -> frozenset[str]:
    return choose_pixel_val((r.name, r.label, r.patient) for r in rows if splits[r.name] == "val")


def _split_notes(
    items: Sequence[Item], rows: Sequence[Graded], scheme: str, marker: Marker | None
) -> tuple[str, ...]:  # fmt: skip
    notes: list[str] = []
    if scheme:
        moved = sum(r.official_test and i.split != "test" for r, i in zip(rows, items, strict=True))
        notes.append(
            f"patient-disjoint folds over all {len(items)} images ({moved} official test images are used for training "
            "or validation): not comparable with published numbers"
        )
        return tuple(notes)
    kind = "image-level folds" if marker else "the published folds"
    for other, word in (("val", "validation"), ("test", "test")):
        shared = shared_groups(items, "train", other)
        if shared:
            inside = [i for i in items if i.split == other]
            leaked = sum(i.group in shared for i in inside)
            notes.append(
                f"{kind} share patients: {len(shared)} of {len({i.group for i in inside})} {word} patients "
                f"({leaked} of {len(inside)} images) also have training images; use --folds grouped to avoid it"
            )
    return tuple(notes)


def _check_fold(manifest: Manifest) -> None:
    expected = FOLD_4_COUNTS if manifest.fold == "4" else FOLD_COUNTS
    for split, counts in expected.items():
        by_label = Counter(i.label for i in manifest.split(split))
        if (by_label[0], by_label[1]) != counts:
            raise BenchError(
                f"glas, fold {manifest.fold}: {split} has {by_label[0]} benign and {by_label[1]} malignant images "
                f"instead of {counts[0]} and {counts[1]}. {GRADES} was changed: unpack the archive again."
            )
