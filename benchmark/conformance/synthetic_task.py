"""The synthetic task of `bench check`: a dark purple blob on pink means class 1; where it is, is the answer."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from ..core.seeds import seed_for

SIDE = 64
IMAGES = {"train": 32, "val": 12, "test": 24}


STAIN = (0.75, 0.95, 1.0)  # of the target: what its colours are multiplied by


def target_of(csv_path: Path) -> Path:
    """Path of the target of a task."""
    return csv_path.parent / "target" / csv_path.name


def write_target(csv_path: Path) -> Path:
    """Writes other blobs in another stain, called `stained`, to which a model of the task can adapt."""
    return write_blobs(target_of(csv_path).parent, 1, "stained", STAIN)


def write_blobs(
    folder: Path, seed: int = 0, title: str = "blobs", stain: tuple[float, float, float] = (1, 1, 1)
) -> Path:
    """Writes images, masks and a CSV manifest with classes `plain` (declared maskless) and `blob`; returns the CSV."""
    rng = np.random.default_rng(seed_for("check", seed))
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for split, count in IMAGES.items():
        for k in range(count):
            label = k % 2
            image, mask = blob(rng, bool(label))
            name = f"{split}_{k:02d}"
            Image.fromarray((image * np.array(stain)).astype(np.uint8)).save(folder / f"{name}.png")
            if label:
                Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{name}_mask.png")
            truth, kind = (f"{name}_mask.png", "blob") if label else ("", "plain")
            rows.append((name, f"{name}.png", truth, kind, f"{split}-{k // 4}", split))
    path = folder / "blobs.csv"
    with path.open("w", newline="", encoding="utf-8") as handle:
        handle.write(f"# name: {title}\n# classes: plain, blob\n# positive: blob\n# background: plain\n")
        writer = csv.writer(handle)
        writer.writerow(("id", "image", "mask", "label", "group", "split"))
        writer.writerows(rows)
    return path


def blob(rng: np.random.Generator, present: bool) -> tuple[np.ndarray, np.ndarray]:
    """One image (SIDE, SIDE, 3) uint8 and its mask; the blob is a third to a half of the side wide."""
    image = rng.normal((225, 175, 205), 12, (SIDE, SIDE, 3))
    radius = rng.uniform(SIDE / 6, SIDE / 4)
    y, x = rng.uniform(radius, SIDE - radius, 2)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    mask = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
    if present:
        image[mask] = rng.normal((110, 60, 140), 12, (int(mask.sum()), 3))
    return image.clip(0, 255).astype(np.uint8), mask & present
