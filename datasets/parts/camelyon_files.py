"""Camelyon patches on disk: where a copy lies, what its folders hold without lists, and rows made into items."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ...benchmark.core.errors import BenchError
from ..base import Item, missing_files
from ..masks.reader import MaskPixels, MaskRule
from .camelyon_lists import Patch, PatchName, check_patches, mask_beside

LAYOUT = "w-512xh-512"
MASK_RULE = MaskRule(meaning="black-white")


def find_root(data_root: Path, home: str, also_in: Sequence[str]) -> Path:
    """The folder that the paths of the lists are relative to: the one that holds `home`, such as camelyon16/.

    It is the data root, or a folder of it named in `also_in`. Raises BenchError if there is none, or several.
    """
    places = [data_root, *(data_root / name for name in also_in)]
    roots = {((p / home).stat().st_dev, (p / home).stat().st_ino): p for p in reversed(places) if _holds(p, home)}
    if len(roots) > 1:
        both = "\n  ".join(str(p / home) for p in roots.values())
        raise BenchError(f"Several copies of {home} are in {data_root}:\n  {both}\nPoint --data-root at one of them.")
    if roots:
        return next(iter(roots.values()))
    if data_root.name == home and (data_root / LAYOUT).is_dir():
        raise BenchError(f"{data_root} is the dataset itself: point --data-root at the folder that holds {home}/.")
    looked = "\n  ".join(str(p / home / LAYOUT) for p in places)
    raise BenchError(
        f"No {home} patches in {data_root.resolve()}. Looked for these folders:\n  {looked}\n"
        f"Point --data-root at the folder that holds {home}/; docs/datasets.md says where patches come from."
    )


def scan(root: Path, home: str, patterns: Sequence[str]) -> tuple[Patch, ...]:
    """The patches in the folders that match the patterns, labels from the folder, masks beside the images.

    patterns: relative to `w-512xh-512`, such as `metastatic-patches/training/*/*`.
    Raises BenchError if there are none, for a file `Patch_…` whose name says nothing, for rows `check_patches` refuses.
    """
    patches: list[Patch] = []
    for folder in sorted({f for pattern in patterns for f in (root / home / LAYOUT).glob(pattern) if f.is_dir()}):
        within = folder.relative_to(root).as_posix()
        names = {p.name for p in folder.iterdir()}
        for name in sorted(n for n in names if n.startswith("Patch_")):
            path = f"{within}/{name}"
            try:
                parsed = PatchName.parse(name)
            except BenchError as problem:
                raise BenchError(f"{folder}: {problem} Rename or remove the file.") from None
            mask = mask_beside(path) if mask_beside(name) in names else None
            patches.append(Patch(path, int("/metastatic-patches/" in path), mask, parsed))
    if not patches:
        raise BenchError(f"{root / home / LAYOUT} holds no patches in {', '.join(patterns)}. The copy is incomplete.")
    check_patches(patches, str(root / home))
    return tuple(patches)


class ItemMaker:
    """Rows to items. A file has one Path however many folds are opened: `bench data verify` holds all of them."""

    def __init__(self) -> None:
        self._paths: dict[str, Path] = {}

    def __call__(
        self,
        root: Path,
        rows: Iterable[Patch],
        split: str,
        group: Callable[[PatchName], str],
        pixel_val: frozenset[str] = frozenset(),
    ) -> list[Item]:
        """Items of a split, files below `root`; `pixel_val` holds the paths of the rows whose masks may be read."""
        return [
            Item(
                id=row.name.id,
                image=self._path(f"{root}/{row.path}"),
                mask=self._path(f"{root}/{row.mask}") if row.mask else None,
                label=row.label,
                group=group(row.name),
                split=split,
                pixel_val=row.path in pixel_val,
            )
            for row in rows
        ]

    def _path(self, whole: str) -> Path:
        if whole not in self._paths:
            self._paths[whole] = Path(whole)
        return self._paths[whole]


def check_masks(items: Sequence[Item], where: str) -> None:
    """Raises BenchError if masks are gone though the images are there; else whatever is missing is named with them."""
    gone = missing_files([i.mask for i in items if i.mask is not None])
    if gone and not missing_files([i.image for i in items]):
        some = "\n  ".join(str(p) for p in gone[:5])
        raise BenchError(
            f"{where}: the masks of {len(gone)} tumour patches are missing, the first:\n  {some}\n"
            "A tumour patch is never taken for all background: copy the mask_file_… files beside the patches."
        )


def check_share(path: Path | None, mask: MaskPixels) -> MaskPixels:
    """Raises BenchError for an all-black mask whose file name says that part of the patch is tumour."""
    if path is not None and not mask.facts.foreground and (share := _share(path.name)):
        raise BenchError(
            f"{path} is all background, though its name says that {100 * share:.1f} % of the patch is tumour. "
            "Copy or export the mask again."
        )
    return mask


def _share(name: str) -> float | None:
    """Metastatic share in the name of a mask, None where it says nothing."""
    try:
        return PatchName.parse(name).metastatic
    except BenchError:
        return None


def _holds(place: Path, home: str) -> bool:
    return (place / home / LAYOUT).is_dir()
