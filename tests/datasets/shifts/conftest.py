"""The HED colour space for these tests, written without the package's tables."""

from collections.abc import Callable

import numpy as np
import pytest
from skimage.color.colorconv import hed_from_rgb


@pytest.fixture(scope="session")
def hed_amounts() -> Callable[[np.ndarray], np.ndarray]:
    """(H, W, 3) uint8 -> (H, W, 3) float amounts of haematoxylin, eosin and DAB.

    As skimage's rgb2hed but for the unit (natural logarithm of 255ths) and for what it clips at zero.
    """
    return lambda image: -np.log(np.maximum(image, 1) / 255) @ hed_from_rgb
