"""Resolution and pyramid levels of a slide, as its properties state them, and whether they are plausible."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .notes import Note

LEAST_MPP, MOST_MPP = 0.05, 20.0  # µm per px of level 0; outside of these nobody scans
_ISOTROPY = 0.02  # largest relative difference between mpp-x and mpp-y
_TOLD_ISOTROPY = 0.002  # from here on it is said
_SAME = 0.05  # relative difference up to which --assume-mpp says what the slide states
_POWER = 10.0  # µm per px times objective power: 40x is 0.25, 20x is 0.5
_POWER_FACTOR = 1.7  # a scanner differs from it by less
_ROUNDING = 2.0  # px by which a level may differ from level 0 made smaller
_ASPECT = 0.02  # or this share of a side: scanners cut or pad levels to whole tiles


@dataclass(frozen=True)
class Resolution:
    """Microns per px of level 0, None where they are not known, and then why; notes for the reader.

    square: False for a slide whose pixels are not, which cannot be read at all.
    """

    mpp: float | None
    reason: str = ""
    notes: tuple[Note, ...] = ()
    square: bool = True


def level0_resolution(properties: Mapping[str, str], assumed: float | None = None) -> Resolution:
    """The resolution that the properties of openslide state, else the assumed one.

    A statement counts if both axes have the same finite number (within 2 %) in a range that scanners have; an image
    program that does not know writes 72 or 96 px an inch, which is none. An objective power that says something else by
    more than a factor of 1.7 gives a note.
    """
    stated, reason = _stated(properties)
    if stated and abs(stated[0] / stated[1] - 1) > _ISOTROPY:
        return Resolution(
            None, "has pixels of {:g} x {:g} µm; only square ones can be read.".format(*stated), square=False
        )
    power = _number(properties.get("openslide.objective-power"))
    if stated is None:
        if assumed is None:
            hint = (
                f" Its objective power is {power:g}, which is usually {_POWER / power:.3g} µm per px." if power else ""
            )
            return Resolution(None, reason + hint, (Note(0, reason.rstrip(".")),))
        return Resolution(assumed, "", (Note(0, f"{reason.rstrip('.')}: {assumed:g} µm per px from --assume-mpp"),))
    across, down = stated
    mpp, notes = math.sqrt(across * down), []
    if abs(across / down - 1) > _TOLD_ISOTROPY:
        notes.append(Note(0, f"pixels of {across:.4g} x {down:.4g} µm, taken as {mpp:.4g}"))
    if assumed and abs(assumed / mpp - 1) > _SAME:
        notes.append(Note(0, f"states {mpp:.4g} µm per px, which counts, not --assume-mpp {assumed:g}"))
    if power and not 1 / _POWER_FACTOR < mpp * power / _POWER < _POWER_FACTOR:
        usual = f"usually {_POWER / power:.3g}"
        notes.append(Note(0, f"states {mpp:.4g} µm per px, which counts, and objective power {power:g}, {usual}"))
    return Resolution(mpp, "", tuple(notes))


def sound_levels(sizes: Sequence[tuple[int, int]]) -> list[int]:
    """The levels that are level 0 made smaller: with its shape, but for rounding or cut and padded tiles.

    A thumbnail or label that a writer marked as a reduced page of the slide has another shape.
    """
    width, height = sizes[0]
    kept = []
    for level, (wide, high) in enumerate(sizes):
        shrink = math.sqrt((width / wide) * (height / high))
        off = (abs(width / shrink - wide) / max(_ROUNDING, _ASPECT * wide),
               abs(height / shrink - high) / max(_ROUNDING, _ASPECT * high))  # fmt: skip
        if level == 0 or max(off) <= 1:
            kept.append(level)
    return kept


def background_note(properties: Mapping[str, str]) -> list[Note]:
    """What to say of a background colour that is not white."""
    stated = properties.get("openslide.background-color", "")
    try:
        least = min(bytes.fromhex(stated)[:3], default=255)
    except ValueError:
        return []
    return [Note(0, f"states the background colour #{stated}; what was not scanned is white here")] * (least < 200)


def bounds_origin(properties: Mapping[str, str]) -> tuple[float, float]:
    """The upper left corner of the part that was scanned, level-0 px; (0, 0) unless the slide states another one."""
    across, down = (_number(properties.get(f"openslide.bounds-{axis}")) or 0.0 for axis in "xy")
    return across, down


def _stated(properties: Mapping[str, str]) -> tuple[tuple[float, float] | None, str]:
    """µm per px across and down, or None and why not."""
    texts = [properties.get(f"openslide.mpp-{axis}") for axis in "xy"]
    if texts == [None, None]:
        return None, "does not state its resolution (microns per pixel)."
    across, down = map(_number, texts)
    if across is None or down is None:
        return None, f"states no usable resolution ({texts[0]} x {texts[1]} µm per px)."
    if not all(LEAST_MPP <= mpp <= MOST_MPP for mpp in (across, down)):
        inch = f", or {25400 / across:.4g} px an inch" if across > MOST_MPP else ""
        return None, f"states {across:.4g} x {down:.4g} µm per px{inch}, which no scanner has."
    return (across, down), ""


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and number > 0 else None
