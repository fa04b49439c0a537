"""Camelyon17: patches of five centres in the layout of Camelyon16, to test models trained elsewhere."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from ..benchmark.core.errors import BenchError
from .base import Dataset, DatasetCard, Item, Manifest, check_manifest, register
from .masks.reader import MaskPixels
from .parts.camelyon_files import LAYOUT, MASK_RULE, ItemMaker, check_masks, check_share, find_root, scan
from .parts.camelyon_lists import Patch, PatchName, find_lists, read_part
from .parts.marker import Marker, read_marker

HOME = "camelyon17"
LISTS = ("CAMELYON17_512", "CAMELYON17-512", "CAMELYON17512")
CENTRES = 5
PATIENTS = 20  # of each centre, numbered one centre after the other
TEST_IMAGES = (262, 172, 448, 376, 298)  # published, by centre; of centre 3 another version with 744 exists
# Folders below w-512xh-512: what the published lists test on, and the rest.
TESTING = ("metastatic-patches/testing/*/*", "normal-patches/split_0/fold_[0-4]/test")
TRAINING = (
    "metastatic-patches/training/*/*",
    "normal-patches/split_0/fold_[0-4]/train",
    "normal-patches/split_0/fold_[0-4]/valid",
)
_SLIDE = re.compile(r"patient_(\d{3})_node_\d+", re.ASCII)


@register(
    "camelyon17",
    version=1,
    classes=("normal", "tumor"),
    folds=("0",),
    images="1,556 test",
    licence="CC0 1.0",
    variants=("centre-0", "centre-1", "centre-2", "centre-3", "centre-4"),
    evaluation_only=True,
)
class Camelyon17(Dataset):
    """Patches of lymph nodes from five centres, for evaluation only: camelyon17:centre-0 to centre-4, or all (512 px).

    A centre is a laboratory with its own scanner and stain. Without a variant the centres that are there are pooled.
    """

    card: ClassVar[DatasetCard] = DatasetCard(
        name="camelyon17",
        version=1,
        classes=("normal", "tumor"),
        positive_class=1,
        region_classes=(False, True),
        foreground="tumour only (metastasis)",
        mask_rule=MASK_RULE,
        group="patient",
        licence="CC0 1.0 (public domain)",
        citation="Bandi et al., From detection of individual metastases to classification of lymph node status at the "
        "patient level: the CAMELYON17 challenge, IEEE Transactions on Medical Imaging 38 (2019) 550-560, "
        "doi:10.1109/TMI.2018.2867350",
        evaluation_only=True,
        namespace="camelyon17",
    )
    variants: ClassVar[tuple[str, ...]] = tuple(f"centre-{k}" for k in range(CENTRES))

    def __init__(self, data_root: Path, variant: str = "") -> None:
        super().__init__(data_root, variant)
        self._items = ItemMaker()
        if variant:  # each centre is an evaluation set of its own, in every table
            named = replace(self.card, name=f"{self.card.name}:{variant}")
            self.card = named  # pyright: ignore[reportAttributeAccessIssue]

    def manifest(self, fold: str) -> Manifest:
        """The test rows. Raises BenchError for a missing, incomplete or contradictory copy, or an unknown fold."""
        self.expand_folds([fold])
        root = find_root(self.data_root, HOME, LISTS)
        marker = read_marker(root / HOME)
        wanted = [self.variants.index(self.variant)] if self.variant else list(range(CENTRES))
        lists, _ = find_lists(self.data_root, LISTS, HOME)
        rows, notes = listed_rows(lists, wanted) if lists else found_rows(root, wanted)
        if not rows:
            there = listed_rows(lists, range(CENTRES))[0] if lists else found_rows(root, range(CENTRES))[0]
            held = ", ".join(f"centre-{k}" for k in sorted({centre(row.name) for row in there})) or "none"
            raise BenchError(
                f"No test patches of {self.card.name} in {lists or root / HOME / LAYOUT}. There are those of: {held}."
            )
        items = self._items(root, rows, "test", patient)
        where = f"{self.card.name}, fold {fold}"
        check_masks(items, where)
        return check_manifest(Manifest(self.card, fold, tuple(items), marker is not None, (*_marked(marker), *notes)))

    def read_mask(self, item: Item) -> MaskPixels:
        """True in metastases; only masks of 0 and 255 are taken, and none that the name of its file contradicts."""
        return check_share(item.mask, super().read_mask(item))


def listed_rows(lists: Path, wanted: Sequence[int]) -> tuple[list[Patch], list[str]]:
    """The test rows of the wanted centres that have a list (fold-K is centre K), and what to say about them."""
    rows: list[Patch] = []
    notes = []
    for k in wanted:
        part = read_part(lists / f"fold-{k}" / "test", HOME)
        if part is None:
            if len(wanted) > 1:
                notes.append(f"no test list of centre {k} in {lists.name}: its patches are left out")
            continue
        if len(part) != TEST_IMAGES[k]:
            notes.append(f"centre {k}: {len(part):,} test patches; {TEST_IMAGES[k]:,} are known from publications")
        strangers = sorted({row.name.slide_id for row in part if centre(row.name) != k})
        if strangers:
            some = ", ".join(strangers[:3])
            notes.append(f"centre {k}: {len(strangers)} slides have patient numbers of another centre ({some})")
        rows += part
    return rows, notes


def found_rows(root: Path, wanted: Sequence[int]) -> tuple[list[Patch], list[str]]:
    """The patches in the folders: those for testing or, where a copy has none, all of them."""
    testing = any(True for pattern in TESTING for _ in (root / HOME / LAYOUT).glob(f"{pattern}/Patch_*"))
    rows = [r for r in scan(root, HOME, TESTING if testing else TRAINING) if centre(r.name) in wanted]
    which = "those in the folders for testing" if testing else "all of them, as none lie in a folder for testing"
    return rows, [f"no published lists: patches taken from the folders ({which}), centres from patient numbers"]


def patient(name: PatchName) -> str:
    """`patient_017` of a patch. Raises BenchError for a slide that is not called patient_XXX_node_Y."""
    match = _SLIDE.fullmatch(name.slide_id)
    if not match:
        raise BenchError(f"{name.image_name}: slide '{name.slide_id}' is not patient_XXX_node_Y, as in Camelyon17.")
    return f"patient_{match[1]}"


def centre(name: PatchName) -> int:
    """Centre 0..4 of a patch: patients 0 to 99 of the challenge come twenty from each centre, in order.

    Raises BenchError for other patients, whose centre is not published.
    """
    number = int(patient(name).rpartition("_")[2])
    if number >= CENTRES * PATIENTS:
        raise BenchError(
            f"{name.image_name}: patient {number} is not one of the {CENTRES * PATIENTS} training patients of the "
            "challenge, so its centre is unknown. Remove its patches."
        )
    return number // PATIENTS


def _marked(marker: Marker | None) -> tuple[str, ...]:
    return (marker.note,) if marker else ()
