"""`bench data synth`: synthetic copies of datasets in their official layouts, one writer a layout.

A writer draws its images into a temporary folder, adds the marker file that makes a copy synthetic, and renames the
folder as its last act, so that an interrupted call leaves nothing that looks finished (`synthetic_folder.py`).
"""

import csv
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ...benchmark.core.errors import BenchError
from ...benchmark.core.seeds import seed_for
from ..camelyon16 import HOME, LISTS
from ..camelyon17 import HOME as HOME_17
from ..glas import CLASSES, FOLDER, GRADES
from ..parts.marker import Marker, read_marker
from .synthetic_camelyon import write_camelyon16, write_camelyon17
from .synthetic_folder import check_settings, write_folder

VERSION = 1  # raised whenever the same settings give other files
IMAGES_PER_PATIENT = 5
BENIGN_SHARE = 74 / 165  # as in the real dataset
SUBGRADES = (("healthy", "adenomatous"), ("moderately differentiated", "poorly differentiated"))
HEADER = ("name", "patient ID", " grade (GlaS)", " grade (Sirinukunwattana et al. 2015)")


@dataclass(frozen=True)
class _GlasImage:
    """One image to draw."""

    name: str
    label: int
    patient: int


def write_glas(out: Path, train: int = 64, test: int = 20, size: int = 192, seed: int = 0) -> Path:
    """Writes a synthetic GlaS in the official layout under `out` and returns its folder.

    The same arguments give the same files, byte for byte; a copy with these settings that is there already is kept.
    Raises BenchError for settings out of range and where real data or a copy with other settings is in the way.
    """
    check_settings(train, test, size)
    marker = Marker(VERSION, seed, train, test, size)
    return write_folder(out / FOLDER, marker, _draw_glas)


WRITERS: dict[str, Callable[..., Path]] = {
    "glas": write_glas,
    "camelyon16": write_camelyon16,
    "camelyon17": write_camelyon17,
}
DEFAULT = ("glas", "camelyon16")  # what is written when nobody says what
PLACES = {"glas": (FOLDER,), "camelyon16": (HOME, LISTS[0]), "camelyon17": (HOME_17,)}  # folders that a writer fills


def refuse_real_data(out: Path, names: Sequence[str]) -> None:
    """Raises BenchError if a folder that these writers fill holds anything but synthetic images, before any is written.

    Without it a synthetic GlaS would lie beside the real Camelyon16 by the time that one is refused.
    """
    for folder in (out / place for name in names for place in PLACES[name]):
        if folder.exists() and read_marker(folder) is None:
            raise BenchError(f"{folder} exists and is not synthetic; nothing was written. Choose another folder.")


def _draw_glas(folder: Path, marker: Marker) -> None:
    from joblib import Parallel, delayed

    plans = _plan_glas(marker)
    jobs = min(4, os.cpu_count() or 1) if len(plans) * marker.size**2 > 1_000_000 else 1
    Parallel(n_jobs=jobs)(delayed(_draw_image)(folder, plan, marker) for plan in plans)
    with (folder / GRADES).open("w", newline="", encoding="utf-8") as handle:
        table = csv.writer(handle)
        table.writerow(HEADER)
        for plan in plans:
            grade = SUBGRADES[plan.label][plan.patient % 2]
            table.writerow((plan.name, *(f" {value}" for value in (plan.patient, CLASSES[plan.label], grade))))


def _plan_glas(marker: Marker) -> list[_GlasImage]:
    """Names, classes and patients. As in the real set, patients have both classes and are in training and test."""
    rng = np.random.default_rng(seed_for("synth", "glas", marker.version, marker.seed))
    test_b = marker.test // 4
    names = [f"train_{k}" for k in range(1, marker.train + 1)]
    names += [f"testA_{k}" for k in range(1, marker.test - test_b + 1)] + [f"testB_{k}" for k in range(1, test_b + 1)]
    labels = [*_labels(rng, marker.train), *_labels(rng, marker.test)]
    patients = max(10, round(len(names) / IMAGES_PER_PATIENT))
    owner = np.empty(len(names), int)
    start = 0
    for label in range(len(CLASSES)):  # dealt class by class, so that every patient gets some of each
        places = rng.permutation(np.flatnonzero(np.array(labels) == label))
        owner[places] = (start + np.arange(len(places))) % patients + 1
        start += len(places)
    return [_GlasImage(n, k, int(p)) for n, k, p in zip(names, labels, owner, strict=True)]


def _labels(rng: np.random.Generator, images: int) -> list[int]:
    benign = round(images * BENIGN_SHARE)
    return [int(k) for k in rng.permutation([0] * benign + [1] * (images - benign))]


def _draw_image(folder: Path, plan: _GlasImage, marker: Marker) -> None:
    """Draws one image and its mask; the seed is made from the image's name, so the order of drawing plays no part."""
    from .histology import STYLES, paint_glands, random_stain

    address: Sequence[str | int] = ("synth", "glas", marker.version, marker.seed)
    stain = random_stain(np.random.default_rng(seed_for(*address, "patient", plan.patient)))
    image, glands = paint_glands(
        np.random.default_rng(seed_for(*address, plan.name)), STYLES[plan.label], stain, marker.size
    )
    Image.fromarray(image).save(folder / f"{plan.name}.bmp")
    Image.fromarray(glands).save(folder / f"{plan.name}_anno.bmp")
