"""Camelyon16: patches of lymph nodes, normal or tumour, in the published layout of 512 px and its lists."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from ..benchmark.core.errors import BenchError
from .base import Dataset, DatasetCard, Item, Manifest, check_manifest, register, shared_groups
from .masks.reader import MaskPixels
from .parts.camelyon_files import MASK_RULE, ItemMaker, check_masks, check_share, find_root, scan
from .parts.camelyon_lists import PARTS, FoldRows, Lists, PatchName, find_lists
from .parts.folds import choose_pixel_val, divide_groups
from .parts.marker import Marker, read_marker

HOME = "camelyon16"
LISTS = ("CAMELYON512",)
# Published images of each class, by split, in folds 0 to 3 and in fold 4; normal and tumour are equal everywhere.
FOLD_COUNTS = {"train": 13282, "val": 3321, "valpx": 5, "test": 7832}
FOLD_4_COUNTS = {"train": 13284, "val": 3319, "valpx": 5, "test": 7832}
POOL, TEST = 33206, 15664  # images outside and in the official test set
PIXEL_VAL = 5  # of each class, as in the published lists
# Folders below w-512xh-512: slides for training, and those of the official test set.
TRAINING = (
    "metastatic-patches/training/*/*",
    "normal-patches/split_0/fold_0/train",
    "normal-patches/split_0/fold_0/valid",
)
TESTING = ("metastatic-patches/testing/*/*", "normal-patches/split_1/fold_0/test")


@register(
    "camelyon16",
    version=1,
    classes=("normal", "tumor"),
    folds=("0", "1", "2", "3", "4", "grouped-0", "grouped-1", "grouped-2", "grouped-3", "grouped-4"),
    images="33,206 train, 15,664 test",
    licence="CC0 1.0",
)
class Camelyon16(Dataset):
    """Patches of sentinel lymph nodes, normal or tumour; metastases are foreground (Camelyon16, 512 px).

    Folds 0 to 4 are the published ones: they divide patches, so that nearly every training slide is in validation too.
    grouped-0 to grouped-4 divide the slides of the same patches. The official test set is the same in all of them.
    """

    card: ClassVar[DatasetCard] = DatasetCard(
        name="camelyon16",
        version=1,
        classes=("normal", "tumor"),
        positive_class=1,
        region_classes=(False, True),
        foreground="tumour only (metastasis)",
        mask_rule=MASK_RULE,
        group="slide",
        licence="CC0 1.0 (public domain)",
        citation="Ehteshami Bejnordi et al., Diagnostic assessment of deep learning algorithms for detection of lymph "
        "node metastases in women with breast cancer, JAMA 318 (2017) 2199-2210, doi:10.1001/jama.2017.14585",
        namespace="camelyon16",
    )
    folds: ClassVar[tuple[str, ...]] = tuple([str(k) for k in range(PARTS)] + [f"grouped-{k}" for k in range(PARTS)])

    def __init__(self, data_root: Path, variant: str = "") -> None:
        super().__init__(data_root, variant)
        self._items = ItemMaker()
        self._lists: dict[Path, Lists] = {}

    def manifest(self, fold: str) -> Manifest:
        """The rows of a fold. Raises BenchError for a missing, incomplete or contradictory copy, or an unknown fold."""
        if fold not in self.folds:
            self.expand_folds([fold])  # explains; a scheme's name is no fold either
            raise BenchError(f"'{fold}' names {PARTS} folds of {self.card.name}; one is needed, such as {fold}-0.")
        root = find_root(self.data_root, HOME, LISTS)
        marker = read_marker(root / HOME)
        scheme, _, number = fold.rpartition("-")
        rows = self._rows(root, int(number), bool(scheme))
        items = [
            *self._items(root, rows.train, "train", _slide),
            *self._items(root, rows.val, "val", _slide, rows.pixel_val),
            *self._items(root, rows.test, "test", _slide),
        ]
        where = f"{self.card.name}, fold {fold}"
        _check_test_slides(items, where)
        check_masks(items, where)
        about = tuple(_grouped_notes(rows, marker) if scheme else _leak_notes(items, marker))
        notes = (marker.note, *about) if marker else about
        leaks = frozenset() if scheme else frozenset({"groups"})  # test slides are others: checked above
        manifest = check_manifest(Manifest(self.card, fold, tuple(items), marker is not None, notes, about, leaks))
        if marker is None and not scheme:
            _check_counts(manifest)
        return manifest

    def read_mask(self, item: Item) -> MaskPixels:
        """True in metastases; only masks of 0 and 255 are taken, and none that the name of its file contradicts."""
        return check_share(item.mask, super().read_mask(item))

    def _rows(self, root: Path, fold: int, grouped: bool) -> FoldRows:
        folder, places = find_lists(self.data_root, LISTS, HOME)
        lists = self._lists.setdefault(folder, Lists(folder, HOME)) if folder else None
        if grouped:
            return grouped_rows(root, lists, fold)
        if lists is None:
            looked = "\n  ".join(str(p) for p in places)
            raise BenchError(
                f"Fold {fold} of {self.card.name} is defined by the published lists, which are not there. Looked for:\n"
                f"  {looked}\nCopy the folder {LISTS[0]} with fold-0 to fold-4 from the repository of the papers there "
                "(docs/datasets.md), or use --folds grouped, which needs no lists."
            )
        return lists.rows(fold)


def grouped_rows(root: Path, lists: Lists | None, fold: int) -> FoldRows:
    """A slide-disjoint division of the training patches: those of the lists or, without any, all in the folders."""
    pool, test = (lists.pool(), lists.test()) if lists else (scan(root, HOME, TRAINING), scan(root, HOME, TESTING))
    part = divide_groups(((row.label, row.name.slide_id) for row in pool), PARTS)
    val = tuple(row for row in pool if part[row.name.slide_id] == fold)
    chosen = choose_pixel_val(((row.name.id, row.label, row.name.slide_id) for row in val), PIXEL_VAL)
    return FoldRows(
        train=tuple(row for row in pool if part[row.name.slide_id] != fold),
        val=val,
        test=test,
        pixel_val=frozenset(row.path for row in val if row.name.id in chosen),
    )


def _slide(name: PatchName) -> str:
    return name.slide_id


def _check_test_slides(items: Sequence[Item], where: str) -> None:
    for split in ("train", "val"):
        if both := shared_groups(items, split, "test"):
            raise BenchError(
                f"{where}: {len(both)} slides are in {split} and in test ({', '.join(both[:5])}), so the test set "
                "would measure what was learnt by heart. Remove their patches from one of the two."
            )


def _leak_notes(items: Sequence[Item], marker: Marker | None) -> list[str]:
    shared = shared_groups(items, "train", "val")
    if not shared:
        return []
    inside = [i for i in items if i.split == "val"]
    leaked = sum(i.group in set(shared) for i in inside)
    kind = "patch-level folds" if marker else "the published folds divide patches, not slides"
    return [
        f"{kind}: {len(shared)} of {len({i.group for i in items if i.split == 'train'})} training slides also have "
        f"validation patches ({leaked:,} of {len(inside):,} validation patches); test slides are others; "
        "use --folds grouped to avoid it"
    ]


def _grouped_notes(rows: FoldRows, marker: Marker | None) -> list[str]:
    pool = len(rows.train) + len(rows.val)
    notes = [
        f"slide-disjoint division of the {pool:,} training patches, the official test set untouched: selection differs "
        "from published work"
    ]
    if marker is None and (pool, len(rows.test)) != (POOL, TEST):
        notes.append(
            f"{pool:,} training and {len(rows.test):,} test patches instead of the published {POOL:,} and {TEST:,}: "
            "not comparable with published numbers"
        )
    return notes


def _check_counts(manifest: Manifest) -> None:
    expected: Mapping[str, int] = FOLD_4_COUNTS if manifest.fold == "4" else FOLD_COUNTS
    for split, each in expected.items():
        counts = Counter(i.label for i in manifest.split(split))
        if (counts[0], counts[1]) != (each, each):
            raise BenchError(
                f"{HOME}, fold {manifest.fold}: {split} has {counts[0]:,} normal and {counts[1]:,} tumour patches "
                f"instead of {each:,} and {each:,}. These are not the published lists: copy them again, or use "
                "--folds grouped for patches of your own."
            )
