"""Synthetic Camelyon patches in the published layout, names and lists; see `histology_nodes.py` for how they look.

Camelyon16 lies in two folders, the patches and the lists. The lists are renamed first and the patches last, and both
carry the marker: what an interrupted call leaves is lists without patches, which the next call takes up.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from ...benchmark.core.seeds import seed_for
from ..camelyon16 import HOME, LISTS, PIXEL_VAL
from ..camelyon17 import HOME as HOME_17
from ..camelyon17 import PATIENTS
from ..parts.camelyon_files import LAYOUT
from ..parts.camelyon_lists import PARTS, Patch, PatchName, mask_beside, write_part
from ..parts.folds import choose_pixel_val, deal_images
from ..parts.marker import Marker
from .synthetic_folder import check_settings, keep_copy, write_folder

VERSION = 1  # raised whenever the same settings give other files
SIZE = 128  # px; a lymphocyte is 4 px wide then, and 3 px at an input of 96 px
PER_SLIDE = 3  # images of a slide, about
MIN_TEST_SLIDES = 3  # of each class, where there are so many images
CENTRES = (0, 3)  # of Camelyon17
OWN_STAIN = {HOME: 0.6, HOME_17: 0.3}  # how far the stain of a slide goes from its laboratory's to one of its own
_SITES = 64  # places along each side of a slide


@dataclass(frozen=True)
class _Plan:
    """One patch to paint: its slide (as in a patch name), number on the slide, class, folder below `w-512xh-512`.

    centre: the laboratory whose stain the slide resembles.
    """

    slide: str
    number: int
    tumour: bool
    folder: str
    centre: str = "centre"


def write_camelyon16(out: Path, train: int = 64, test: int = 24, size: int = SIZE, seed: int = 0) -> Path:
    """Writes a synthetic Camelyon16 under `out`, patches in camelyon16/ and lists in CAMELYON512/; returns the former.

    Half of the patches are normal; `train` counts those outside the official test set. The same arguments give the same
    files, byte for byte; a copy with these settings is kept, and its lists are written again if they are gone.
    Raises BenchError for settings out of range and where real data or a copy with other settings is in the way.
    """
    check_settings(train, test, size)
    marker = Marker(VERSION, seed, train, test, size)
    folder, lists = out / HOME, out / LISTS[0]
    if folder.exists():
        keep_copy(folder, marker)
        write_folder(lists, marker, partial(_draw_lists, folder))
        return folder
    if lists.exists():
        keep_copy(lists, marker)  # refused before anything is painted

    def draw(temporary: Path, marker: Marker) -> None:
        _draw(_plan_16(marker), HOME, temporary, marker)
        write_folder(lists, marker, partial(_draw_lists, temporary))

    return write_folder(folder, marker, draw)


def write_camelyon17(out: Path, train: int = 0, test: int = 24, size: int = SIZE, seed: int = 0) -> Path:
    """Writes test patches of two laboratories, centre 0 and 3, in the layout of Camelyon17; returns their folder.

    The slides of a centre share a stain, which is another in each centre. Such a set is for evaluation only, so that
    `train` plays no part. Half of each centre's patches are normal. Raises BenchError as `write_camelyon16` does.
    """
    del train
    check_settings(20, test, size)
    marker = Marker(VERSION, seed, 0, test, size)
    return write_folder(out / HOME_17, marker, lambda temporary, m: _draw(_plan_17(m), HOME_17, temporary, m))


def _plan_16(marker: Marker) -> list[_Plan]:
    plans = []
    for tumour, images in enumerate(_halves(marker.train)):
        slides = PARTS * max(1, round(images / PER_SLIDE / PARTS))  # each grouped fold gets as many of each class
        kind = ("normal", "tumor")[tumour]
        for slide, number in _deal(images, slides):
            name = f"training-{kind}-{kind}_{slide + 1:03d}"
            part = "valid" if slide % 4 == 3 else "train"  # about the published shares, by slide
            plans.append(_Plan(name, number, bool(tumour), _folder(name, tumour, f"split_0/fold_0/{part}")))
    slides = [min(n, max(MIN_TEST_SLIDES, round(n / PER_SLIDE))) for n in _halves(marker.test)]
    order = np.random.default_rng(seed_for("synth", HOME, marker.version, marker.seed, "slides")).permutation(
        sum(slides)
    )
    for tumour, images in enumerate(_halves(marker.test)):
        for slide, number in _deal(images, slides[tumour]):
            name = f"testing-images-test_{order[slide + tumour * slides[0]] + 1:03d}"
            plans.append(_Plan(name, number, bool(tumour), _folder(name, tumour, "split_1/fold_0/test")))
    return plans


def _plan_17(marker: Marker) -> list[_Plan]:
    plans = []
    for centre, images in zip(CENTRES, _halves(marker.test), strict=True):
        patients = iter(range(centre * PATIENTS, (centre + 1) * PATIENTS))
        for tumour, part in enumerate(_halves(images)):
            owners = [next(patients) for _ in range(min(part, 3))]
            for slide, number in _deal(part, len(owners)):
                name = f"testing-centre_{centre}-patient_{owners[slide]:03d}_node_{tumour}"
                folder = _folder(name, tumour, f"split_0/fold_{centre}/test")
                plans.append(_Plan(name, number, bool(tumour), folder, f"centre-{centre}"))
    return plans


def _halves(images: int) -> tuple[int, int]:
    return images - images // 2, images // 2


def _deal(images: int, slides: int) -> list[tuple[int, int]]:
    """Slide, and number on it, of each image."""
    return [(k % slides, k // slides) for k in range(images)]


def _folder(slide: str, tumour: int, normal: str) -> str:
    return str(
        PurePosixPath("metastatic-patches", *slide.split("-")) if tumour else PurePosixPath("normal-patches", normal)
    )


def _draw(plans: Sequence[_Plan], home: str, folder: Path, marker: Marker) -> None:
    from joblib import Parallel, delayed

    for place in {plan.folder for plan in plans}:
        (folder / LAYOUT / place).mkdir(parents=True)
    jobs = min(4, os.cpu_count() or 1) if len(plans) * marker.size**2 > 1_000_000 else 1
    Parallel(n_jobs=jobs)(delayed(_draw_patch)(folder, plan, home, marker) for plan in plans)


def _draw_patch(folder: Path, plan: _Plan, home: str, marker: Marker) -> None:
    """Paints one patch; seeds are made from the names of slide and patch, so that order plays no part."""
    from .histology import blend_stains, random_stain
    from .histology_nodes import paint_node, random_metastasis, tissue_share

    address: Sequence[str | int] = ("synth", home, marker.version, marker.seed)
    of_slide = np.random.default_rng(seed_for(*address, plan.slide))
    stain, tumour = random_stain(of_slide), random_metastasis(of_slide)
    laboratory = random_stain(np.random.default_rng(seed_for(*address, plan.centre)))
    stain = blend_stains(laboratory, stain, OWN_STAIN[home])
    sites = of_slide.permutation(_SITES**2)
    rng = np.random.default_rng(seed_for(*address, plan.slide, plan.number))
    image, mask = paint_node(rng, stain, marker.size, _random_share(rng) if plan.tumour else 0.0, tumour)
    row, column = divmod(int(sites[plan.number]), _SITES)
    name = PatchName(
        slide=plan.slide,
        patch=plan.number,
        x=(column + 40) * marker.size,
        y=(row + 40) * marker.size,
        tissue=tissue_share(image),
        width=marker.size,
        height=marker.size,
    )
    place = folder / LAYOUT / plan.folder
    if plan.tumour:
        name = replace(name, metastatic=float(mask.mean()), region=plan.number % 3, row=plan.number // 3, patch=column)
        Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))).save(place / name.mask_name)
    Image.fromarray(image).save(place / name.image_name)


def _random_share(rng: np.random.Generator) -> float:
    """Share of a tumour patch that is tumour, near the published distribution: mostly 0.2 to 0.5, some all of it."""
    kind = rng.random()
    if kind > 0.96:
        return 1.0
    return rng.uniform(0.5, 0.97) if kind > 0.62 else 0.2 + 0.3 * rng.beta(0.6, 1.1)


def _draw_lists(patches: Path, folder: Path, marker: Marker) -> None:
    """The lists of five folds by patch, made of the file names in `patches`, in the published formats."""
    del marker
    rows = _rows(patches)
    pool, test = (
        [r for r in rows if ("/testing/" in r.path or "/split_1/" in r.path) == is_test] for is_test in (0, 1)
    )
    part = deal_images({r.path: r.label for r in pool}, PARTS)
    for k in range(PARTS):
        val = [r for r in pool if part[r.path] == k]
        chosen = choose_pixel_val(((r.path, r.label, r.name.slide_id) for r in val), PIXEL_VAL)
        write_part(folder / f"fold-{k}" / "valcl", val)
        write_part(folder / f"fold-{k}" / "valpx", [r for r in val if r.path in chosen])
        write_part(folder / f"fold-{k}" / "test", test, "None")


def _rows(patches: Path) -> list[Patch]:
    """The patches below a folder that is or will be `camelyon16`, tumour first, as in the published lists."""
    rows = []
    for file in sorted(patches.rglob("Patch_*.png")):
        path, name = f"{HOME}/{file.relative_to(patches).as_posix()}", PatchName.parse(file.name)
        label = int(name.metastatic is not None)
        rows.append(Patch(path, label, mask_beside(path) if label else None, name))
    return sorted(rows, key=lambda r: -r.label)
