"""`bench data info`: what a dataset holds, as a table and as a contact sheet."""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..benchmark.core.errors import BenchError
from ..benchmark.core.files import atomic_path
from .base import SPLITS, Dataset, Item, Manifest
from .masks.decode import decode_image, image_size, resize_image
from .masks.sets import SizedMask, mask_notes, sized_mask
from .masks.sizes import reduce_mask
from .open import BadFile, bad_files_error
from .verify import SCORE_SIZE, count_images

THUMBNAIL = 160  # px
PER_CLASS = 4  # thumbnails of each class in a split


@dataclass(frozen=True)
class Info:
    """One fold of a dataset. `foreground` is the share of foreground per split, in [0, 1], ignored pixels left out.

    At 224 px all masks weigh the same, so the share of the test set is also the chance level of PxAP there.
    """

    dataset: str
    fold: str
    synthetic: bool
    counts: dict[str, dict[str, int]]
    groups: dict[str, int]
    sizes: dict[str, int]  # "width x height" to number of images
    foreground: dict[str, float]
    card: dict[str, Any]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """The facts as a JSON value."""
        return asdict(self)


def describe(dataset: Dataset, fold: str) -> Info:
    """Reads headers of the images and all masks of a fold. Raises BenchError for files and masks that mean nothing."""
    manifest = dataset.manifest(fold)
    masks = sized_masks(dataset, manifest)
    sizes = Counter(f"{w} x {h}" for h, w in (image_size(i.image) for i in manifest.items))
    return Info(
        dataset=manifest.card.name,
        fold=fold,
        synthetic=manifest.synthetic,
        counts=count_images(manifest),
        groups={s: len({i.group for i in manifest.split(s)}) for s in (*SPLITS, "valpx")},
        sizes=dict(sizes.most_common()),
        foreground=foreground_shares(manifest, masks),
        card=asdict(manifest.card),
        notes=(*manifest.notes, *mask_notes(manifest, masks, SCORE_SIZE)),
    )


def sized_masks(dataset: Dataset, manifest: Manifest, size: int = SCORE_SIZE) -> dict[str, SizedMask]:
    """All masks of a fold by image id, squashed to `size` px. Raises BenchError naming those that cannot be read."""

    def read(item: Item) -> SizedMask | BadFile:
        try:
            return sized_mask(dataset.read_mask(item), size)
        except BenchError as problem:
            return BadFile(item.image, str(problem))

    masked = [i for i in manifest.items if i.mask is not None]
    with ThreadPoolExecutor(4) as pool:
        masks = dict(zip((i.id for i in masked), pool.map(read, masked), strict=True))
    if bad := [f for f in masks.values() if isinstance(f, BadFile)]:
        raise bad_files_error(f"{manifest.card.name}, fold {manifest.fold}", bad, len(masked))
    return {name: mask for name, mask in masks.items() if isinstance(mask, SizedMask)}


def foreground_shares(manifest: Manifest, masks: Mapping[str, SizedMask], size: int = SCORE_SIZE) -> dict[str, float]:
    """Share of foreground of the pixels that are not ignored, by split that has images; 0 for an image without mask."""
    shares = {}
    for split in SPLITS:
        rows = [masks.get(i.id) for i in manifest.split(split)]
        annotated = sum(m.pixels - m.ignored if m else size * size for m in rows)
        if annotated:
            shares[split] = sum(m.foreground for m in rows if m) / annotated
    return shares


def contact_sheet(dataset: Dataset, fold: str, path: Path) -> Path:
    """Writes a PNG with a few images of each class and split, their masks outlined, and returns its path."""
    import matplotlib.style

    with matplotlib.style.context("default"):  # whatever a user's matplotlibrc says
        return _contact_sheet(dataset, fold, path)


def _contact_sheet(dataset: Dataset, fold: str, path: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    manifest = dataset.manifest(fold)
    classes = manifest.card.classes
    columns = PER_CLASS * len(classes)
    splits = [s for s in SPLITS if manifest.split(s)]
    figure = Figure(figsize=(1.5 * columns, 1.72 * len(splits) + 0.75), dpi=120)
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(splits), columns, squeeze=False)
    for row, split in zip(grid, splits, strict=True):
        shown = [i for k in range(len(classes)) for i in _pick(manifest.split(split), k)]
        for axes, item in zip(row, shown, strict=True):
            axes.set_axis_off()
            if item:
                _draw(axes, dataset, manifest, item)
        row[0].text(-0.08, 0.5, split, transform=row[0].transAxes, rotation=90, ha="right", va="center", fontsize=11)
    warning = "SYNTHETIC images · " if manifest.synthetic else ""
    title = f"{warning}{manifest.card.name}, fold {fold} · outline: {manifest.card.foreground}"
    figure.suptitle(title, fontsize=12, parse_math=False)
    figure.subplots_adjust(left=0.03, right=0.995, top=1 - 0.62 / figure.get_figheight(), bottom=0.01, wspace=0.05)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _pick(items: Sequence[Item], label: int) -> list[Item | None]:
    """PER_CLASS images of a class, evenly spread over the list, filled up with None."""
    mine = [i for i in items if i.label == label]
    n = min(PER_CLASS, len(mine))
    picked = [mine[k * len(mine) // n] for k in range(n)]
    return [*picked, *[None] * (PER_CLASS - n)]


def _draw(axes: Any, dataset: Dataset, manifest: Manifest, item: Item) -> None:
    axes.imshow(resize_image(decode_image(item.image), THUMBNAIL))
    if item.mask is not None:
        mask = reduce_mask(dataset.read_mask(item).foreground, THUMBNAIL, "nearest")
        if mask.any() and not mask.all():
            axes.contour(mask, levels=[0.5], colors="#39ff14", linewidths=0.8)
    patient = f"{manifest.card.group} {item.group}" if len(item.group) <= 8 else item.group[-14:]
    axes.set_title(
        f"{item.id[-18:]}\n{manifest.card.classes[item.label]} · {patient}", fontsize=6.5, pad=2, parse_math=False
    )
