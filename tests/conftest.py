"""Fixtures for all tests. Real data and weights are used where they lie beside the checkout, else skipped."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("no shared/data folder beside the checkout (outside users do not have it)")
    return folder


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    path = SHARED / "weights" / "resnet18_ebhi.safetensors"
    if not path.is_file():
        pytest.skip("no shared/weights folder beside the checkout (outside users do not have it)")
    return path
