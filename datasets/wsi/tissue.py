"""Tissue mask of a slide: thresholds of Otsu (1979) on red, green, blue and on the saturation of HSV."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TissueRule:
    """Thresholds of one slide, in grey levels 0..255; `floor` is the least red, green and blue of tissue."""

    red: int
    green: int
    blue: int
    saturation: int
    floor: float

    def mask(self, image: np.ndarray) -> np.ndarray:
        """(H, W) bool from (H, W, 3) uint8 RGB.

        Tissue: not all of red, green, blue exceed their thresholds (that is glass), and the saturation exceeds its
        own, and red, green, blue all exceed the floor (what does not is ink, a fold, or was not scanned).
        """
        red, green, blue = (image[..., k] for k in range(3))  # channel by channel: numpy is slow over an axis of three
        glass = (red > self.red) & (green > self.green) & (blue > self.blue)
        lit = (red > self.floor) & (green > self.floor) & (blue > self.floor)
        return ~glass & lit & (saturation(image) > self.saturation)


def saturation(image: np.ndarray) -> np.ndarray:
    """Saturation of HSV, (H, W) uint8: 255 (max - min) / max of the three channels, rounded; 0 for black."""
    red, green, blue = (image[..., k].astype(np.uint16) for k in range(3))  # 255 * 255 + 127 fits
    high, low = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    return ((255 * (high - low) + high // 2) // np.maximum(high, 1)).astype(np.uint8)


def tissue_rule(image: np.ndarray, scanned: np.ndarray, floor: float) -> TissueRule:
    """The thresholds of a slide from its overview, (h, w, 3) uint8, over the scanned pixels above the floor.

    Black padding counted as a class would push every threshold below the tissue. A slide without any such pixel gets
    thresholds that find no tissue.
    """
    pixels = image[scanned & (image > floor).all(axis=2)]
    red, green, blue = (otsu(np.bincount(pixels[:, k], minlength=256)) for k in range(3))
    return TissueRule(red, green, blue, otsu(np.bincount(saturation(pixels[None])[0], minlength=256)), floor)


def otsu(histogram: np.ndarray) -> int:
    """Otsu's threshold of a histogram over 0..n-1: the value t that parts <= t from > t with the largest variance
    between the two; the lowest such t, and the highest grey level present if there are not two classes."""
    levels = np.arange(len(histogram))
    present = np.flatnonzero(histogram)
    if len(present) < 2:
        return int(present[0]) if len(present) else len(histogram) - 1
    below = np.cumsum(histogram).astype(float)
    total, weighted = below[-1], np.cumsum(histogram * levels).astype(float)
    above = total - below
    inner = slice(int(present[0]), int(present[-1]))  # both classes hold pixels
    difference = weighted[inner] / below[inner] - (weighted[-1] - weighted[inner]) / above[inner]
    return int(present[0] + np.argmax(below[inner] * above[inner] * difference**2))
