"""Datasets on disk for these tests: the real GlaS in its official form, and a small synthetic one."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsolbench.datasets.glas import FOLDER, Glas
from wsolbench.datasets.parts.camelyon_lists import Patch, PatchName, mask_beside, write_part
from wsolbench.datasets.parts.marker import Marker, write_marker
from wsolbench.datasets.synthesis.synthetic import write_glas


@pytest.fixture(scope="session")
def real_root(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official folder, made from lossless copies: masks as BMP, images linked to save 200 MB (content decides)."""
    root = tmp_path_factory.mktemp("real")
    folder = root / FOLDER
    folder.mkdir()
    for png in (shared_data / "glas" / "png").glob("*.png"):
        bmp = folder / f"{png.stem}.bmp"
        if png.stem.endswith("_anno"):
            Image.open(png).save(bmp)
        else:
            bmp.symlink_to(png)
    shutil.copy(shared_data / "glas" / "Grade.csv", folder)
    return root


@pytest.fixture(scope="session")
def real(real_root: Path) -> Glas:
    return Glas(real_root)


@pytest.fixture(scope="session")
def synth_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images of 64 px; tests that change files take `synth_copy`."""
    root = tmp_path_factory.mktemp("synth")
    write_glas(root, train=30, test=10, size=64)
    return root


@pytest.fixture
def synth_copy(synth_root: Path, tmp_path: Path) -> Path:
    root = tmp_path / "copy"
    shutil.copytree(synth_root, root)
    return root


@dataclass
class PatchTree:
    """Camelyon patches of 16 px in the published layout under `root`; nothing is written before `images` or `lists`."""

    root: Path
    home: str
    rows: dict[str, list[Patch]] = field(default_factory=lambda: {"train": [], "test": []})

    def add(self, part: str, slide: str, label: int, patches: int, folder: str) -> None:
        """Rows of a slide; `folder` is relative to w-512xh-512. Tumour fills the upper half of a tumour patch."""
        for k in range(patches):
            extra = {"metastatic": 0.5, "region": 0, "row": k} if label else {}
            name = PatchName(slide=slide, patch=k, x=512 * k, y=100, tissue=0.75, **extra)
            path = f"{self.home}/w-512xh-512/{folder}/{name.image_name}"
            self.rows[part].append(Patch(path, label, mask_beside(path) if label else None, name))

    def images(self) -> None:
        """Writes all patches and masks."""
        mask = np.zeros((16, 16), np.uint8)
        mask[:8] = 255
        for k, row in enumerate([r for rows in self.rows.values() for r in rows]):
            path = self.root / row.path
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((16, 16, 3), k % 200 + 20, np.uint8)).save(path)
            if row.mask:
                Image.fromarray(mask).save(self.root / row.mask)

    def folds(self) -> dict[int, list[Patch]]:
        """Validation rows by fold: every fifth patch of each class, so that slides are shared."""
        found: dict[int, list[Patch]] = {k: [] for k in range(5)}
        for label in (0, 1):
            for n, row in enumerate(r for r in self.rows["train"] if r.label == label):
                found[n % 5].append(row)
        return found

    def lists(self, place: str = "CAMELYON512") -> Path:
        """Writes valcl, valpx (one of each class) and the test list of fold 0, in the published formats."""
        folder = self.root / place
        for k, rows in self.folds().items():
            write_part(folder / f"fold-{k}" / "valcl", rows)
            first = [next(r for r in rows if r.label == label) for label in (0, 1)]
            write_part(folder / f"fold-{k}" / "valpx", first)
        write_part(folder / "fold-0" / "test", self.rows["test"])
        return folder


@pytest.fixture
def patch_tree(tmp_path: Path) -> PatchTree:
    """Rows of Camelyon16: ten tumour and ten normal slides of three patches, four test slides of two."""
    tree = PatchTree(tmp_path / "data", "camelyon16")
    for k in range(1, 11):
        tree.add("train", f"training-tumor-tumor_{k:03}", 1, 3, f"metastatic-patches/training/tumor/tumor_{k:03}")
        part = "train" if k < 8 else "valid"
        tree.add("train", f"training-normal-normal_{k:03}", 0, 3, f"normal-patches/split_0/fold_0/{part}")
    for k in (1, 2):
        tree.add("test", f"testing-images-test_{k:03}", 1, 2, f"metastatic-patches/testing/images/test_{k:03}")
        tree.add("test", f"testing-images-test_{k + 2:03}", 0, 2, "normal-patches/split_1/fold_0/test")
    return tree


@pytest.fixture
def camelyon16_root(patch_tree: PatchTree) -> Path:
    """The tree above with its lists, marked as synthetic."""
    patch_tree.images()
    patch_tree.lists()
    write_marker(patch_tree.root / "camelyon16", Marker(version=1, seed=7, train=60, test=8, size=16))
    return patch_tree.root
