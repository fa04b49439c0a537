"""Datasets on disk for these tests: the real GlaS in its official form, and a small synthetic one."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from wsolbench.datasets.glas import FOLDER, Glas
from wsolbench.datasets.synthetic import write_glas


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
