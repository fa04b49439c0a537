"""Gallery of the page: example images and score maps, packed so that the browser can redraw and score them.

A map is stored as numbers, not as a picture: the histogram bin (metrics.THRESHOLDS) of every pixel, so that the region
"score >= tau" and its Dice are exact at every step of the slider. Images and masks are stored once for all maps.
"""

import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ...benchmark.core.files import read_npz
from ...benchmark.core.results_store import Store
from ..rows.load import Findings, Row
from ..rows.packing import FOREGROUND, IGNORED, STEPS, pack_image, pack_map, pack_mask, within_0_and_1
from ..tables.aggregate import Line, Table

LIMIT = 24_000_000  # characters of packed images, masks and maps on one page
HELD = 1000  # maps in memory while they wait for a place


@dataclass(frozen=True)
class Gallery:
    """Content of the gallery.

    payload: JSON value read by gallery.js. cards: maps on the page; total: maps there are; left_out: sentences on the
    difference. size: characters of packed data.
    """

    payload: dict[str, Any]
    cards: int
    total: int
    left_out: tuple[str, ...]
    size: int

    @property
    def any(self) -> bool:
        """Whether there is anything to show or to say."""
        return bool(self.cards or self.left_out)

    @property
    def synthetic(self) -> bool:
        """Whether any card shows synthetic data."""
        return any(line["synthetic"] for line in self.payload["lines"])

    @property
    def sized(self) -> str:
        """The size of the packed data as text."""
        return f"{self.size / 1e6:.1f} MB"


class _UnusableError(Exception):
    """The examples of a line cannot be shown; the message is the reason."""


@dataclass
class _Pool:
    """Texts of the page without repetition, by index; `size` counts their characters."""

    texts: list[str] = field(default_factory=list)
    size: int = 0
    _index: dict[str, int] = field(default_factory=dict)

    def cost(self, text: str) -> int:
        """Characters that adding a text would cost."""
        return 0 if text in self._index else len(text)

    def add(self, text: str) -> int:
        """The index of a text, added if it is new."""
        self.size += self.cost(text)
        if text not in self._index:
            self._index[text] = len(self.texts)
            self.texts.append(text)
        return self._index[text]


class _Scene(NamedTuple):
    """The images that several lines share: arrays (n, S, S, 3) uint8, (n, S, S) bool, (n,) class indices.

    ignored: (n, S, S) bool, pixels that count nowhere.
    """

    ids: list[str]
    images: np.ndarray
    masks: np.ndarray
    labels: np.ndarray
    ignored: np.ndarray


class _Candidate(NamedTuple):
    """One map that may become a card. rank: of its image in its set; path, name: the file of the map and its id there.

    scores: the map itself, None where so many wait for a place that this one is read again when its turn comes.
    """

    rank: int
    line: int
    stem: str
    path: Path
    name: str
    scores: np.ndarray | None
    predicted: int | None


def build_gallery(store: Store, findings: Findings, tables: Sequence[Table], limit: int = LIMIT) -> Gallery:
    """The example maps of every line of some tables, each line by its first run.

    Where all would take more than `limit` characters, the checkpoints the protocols choose themselves come first,
    among them the sets of the same kind as those trained on, and there one image of every set after the other, so that
    what is shown is shown for every method. Lines without sound files are left out and named, never guessed.
    """
    return _Builder(store, findings, limit).build(tables)


def _packed(candidates: Sequence[_Candidate], room: Callable[[], int]) -> Iterator[str]:
    """Their maps packed, on all cores and not many more than are taken: most of a large matrix find no room.

    room: characters that are left. Maps that were not held are read again, each file once for all that may fit.
    """
    workers, start, taken = os.cpu_count() or 1, 0, 0
    with ThreadPoolExecutor(workers) as pool:
        while start < len(candidates):
            held = candidates[start].scores is not None
            few = 4 * workers if held else max(4 * workers, int(1.2 * room() * start / max(1, taken)))
            part = [
                c for c in candidates[start : start + few] if (c.scores is not None) == held
            ]  # held ones come first
            files: dict[Path, list[int]] = {}
            for k, c in enumerate(part):
                files.setdefault(c.path, []).append(k)
            texts: dict[int, str] = {}
            for packed in pool.map(_pack, [[part[k] for k in indices] for indices in files.values()]):
                texts.update(zip(files[packed.path], packed.texts, strict=True))
            for k in range(len(part)):
                taken += len(texts[k])
                yield texts.pop(k)
            start += len(part)


class _Texts(NamedTuple):
    """Packed maps of one file."""

    path: Path
    texts: list[str]


def _pack(candidates: Sequence[_Candidate]) -> _Texts:
    """Maps of one file, read again if they are not held."""
    first, maps = candidates[0], [c.scores for c in candidates]
    if first.scores is None:
        arrays = _arrays(first.path, "ids", "maps")
        place = {name: k for k, name in enumerate(arrays["ids"].tolist())}
        maps = [arrays["maps"][place[c.name]] for c in candidates]
    return _Texts(first.path, [pack_map(one) for one in maps if one is not None])


class _Builder:
    def __init__(self, store: Store, findings: Findings, limit: int) -> None:
        self.store, self.findings, self.limit = store, findings, limit
        self.maps, self.images, self.masks = _Pool(), _Pool(), _Pool()
        self._scenes: dict[str, _Scene] = {}
        self._pictures: dict[tuple[str, int], tuple[str, str, str]] = {}
        self._lines: list[dict[str, Any]] = []
        self._shown: dict[tuple[str, int], int] = {}
        self._facts: list[dict[str, Any]] = []
        self._cards: list[list[int | None]] = []
        self._full = False
        self.total = 0
        self.reasons: dict[str, list[str]] = {}

    def build(self, tables: Sequence[Table]) -> Gallery:
        """The gallery of some tables: lines are taken tier by tier, as long as there is room."""
        tiers: dict[tuple[int, bool], list[tuple[Line, bool]]] = {}
        for table in tables:
            shown = {line.first.stage for line in table.shown}
            for order, block in enumerate(table.blocks):
                for line in block.lines:
                    main = line.first.stage in shown
                    if line.first.kind != "none" and not line.first.gated:  # a gated map is the same, or nothing
                        tiers.setdefault((0 if main else order, line.first.ood), []).append((line, main))
        for tier in sorted(tiers):
            self._place(sorted(self._candidates(tiers[tier]), key=lambda c: (c.rank, c.line)))
        payload = {
            "lines": self._lines, "images": self._facts, "cards": self._cards, "colours": _viridis(),
            "sources": self.images.texts, "masks": self.masks.texts, "maps": self.maps.texts,
        }  # fmt: skip
        return Gallery(payload, len(self._cards), self.total, tuple(self._left_out()), self.size)

    @property
    def size(self) -> int:
        """Characters taken so far."""
        return self.maps.size + self.images.size + self.masks.size

    def _candidates(self, lines: Sequence[tuple[Line, bool]]) -> Iterator[_Candidate]:
        for (line, main), loaded in zip(lines, _loaded(self.store, lines), strict=True):
            try:
                stem, scene, maps, predicted = self._check(line.first, loaded)
            except _UnusableError as reason:
                self.reasons.setdefault(str(reason), []).append(line.marked)
                continue
            self.total += len(maps)
            if self._full:  # packing what cannot be shown would take minutes
                continue
            self._lines.append(_line_facts(line, main))
            path, held = _files(self.store, line.first)[0], max(1, HELD // len(lines))
            for name, one in maps.items():
                row = scene.ids.index(name)
                scores = one.copy() if row < held else None
                yield _Candidate(row, len(self._lines) - 1, stem, path, name, scores, predicted.get(name))

    def _place(self, candidates: Sequence[_Candidate]) -> None:
        """Adds cards until one would not fit; nothing is added after it, so that no gaps arise."""
        if self._full:
            return
        for c, packed in zip(candidates, _packed(candidates, lambda: self.limit - self.size), strict=False):
            image, mask, ignored = self._picture(c.stem, c.rank)
            cost = self.maps.cost(packed) + self.images.cost(image) + self.masks.cost(mask)
            cost += self.masks.cost(ignored) if ignored else 0
            if self.size + cost > self.limit:
                self._full = True
                return
            if (c.stem, c.rank) not in self._shown:
                self._shown[c.stem, c.rank] = len(self._facts)
                self._facts.append(self._image_facts(c, image, mask, ignored))
            self._cards.append([c.line, self._shown[c.stem, c.rank], self.maps.add(packed), c.predicted])

    def _image_facts(self, c: _Candidate, image: str, mask: str, ignored: str) -> dict[str, Any]:
        scene = self._scenes[c.stem]
        return {
            "id": scene.ids[c.rank], "size": scene.masks.shape[1], "label": int(scene.labels[c.rank]),
            "source": self.images.add(image), "mask": self.masks.add(mask),
            "ignored": self.masks.add(ignored) if ignored else None, "set": self._lines[c.line]["eval"],
        }  # fmt: skip

    def _picture(self, stem: str, row: int) -> tuple[str, str, str]:
        """An image, its mask, and its ignored pixels where it has some, as texts."""
        if (stem, row) not in self._pictures:
            scene = self._scenes[stem]
            ignored = pack_mask(scene.ignored[row]) if scene.ignored[row].any() else ""
            self._pictures[stem, row] = pack_image(scene.images[row]), pack_mask(scene.masks[row]), ignored
        return self._pictures[stem, row]

    def _check(self, row: Row, loaded: "_Loaded") -> tuple[str, _Scene, dict[str, np.ndarray], dict[str, int]]:
        """Everything of one run: the stem of its images, the images, maps by id, predicted classes by id."""
        stem = str(self.findings.records[row.stage]["facts"].get("examples", ""))
        folder = self.store.run_dir(row.stage)
        if not stem:
            raise _UnusableError("no example images are stored")
        scene = self._scene(stem, len(row.classes))
        arrays = loaded.sound(0)
        maps = dict(zip(arrays["ids"].tolist(), arrays["maps"], strict=False))
        size = scene.masks.shape[1:]
        known = len(maps) == len(arrays["maps"]) == len(arrays["ids"]) and set(maps) <= set(scene.ids)
        known = known and arrays["maps"].shape[1:] == size
        if not (known and within_0_and_1(arrays["maps"])):
            raise _UnusableError(f"{folder / 'examples.npz'} does not fit its images; remove {folder}")
        scores = loaded.sound(1)
        predicted: dict[str, int] = {}
        if not np.isnan(scores["logits"]).any():
            predicted = dict(zip(scores["ids"].tolist(), scores["logits"].argmax(1).tolist(), strict=True))
        return stem, scene, maps, predicted

    def _scene(self, stem: str, classes: int) -> _Scene:
        if stem not in self._scenes:
            path = self.store.root / "examples" / f"{stem}.npz"
            arrays = _arrays(path, "ids", "images", "masks", "labels")
            images, masks, labels = arrays["images"], arrays["masks"], arrays["labels"]
            n, same = len(arrays["ids"]), images.shape == (*masks.shape, 3) and masks.ndim == 3
            if not (same and n == len(masks) == len(labels) > 0 and 0 <= labels.min() <= labels.max() < classes):
                raise _UnusableError(f"{path} holds no sound images and masks; remove it")
            ids, foreground = arrays["ids"].tolist(), masks == FOREGROUND
            self._scenes[stem] = _Scene(ids, images, foreground, labels, masks == IGNORED)
        return self._scenes[stem]

    def _left_out(self) -> Iterator[str]:
        missing = self.total - len(self._cards)
        if missing:
            yield (
                f"{missing} of {self.total} maps, because the page holds at most {self.limit / 1e6:g} MB of them. "
                "Checkpoints that the protocols choose themselves come first, in-domain sets before others, image by "
                "image."
            )
        for reason, names in self.reasons.items():
            yield f"{', '.join(dict.fromkeys(names))}: {reason}."


class _Loaded(NamedTuple):
    """The arrays of a run's two files, each perhaps the reason why it cannot be used."""

    files: tuple[dict[str, np.ndarray] | _UnusableError, ...]

    def sound(self, index: int) -> dict[str, np.ndarray]:
        """The arrays of one file. Raises _UnusableError with its reason."""
        arrays = self.files[index]
        if isinstance(arrays, _UnusableError):
            raise arrays
        return arrays


def _loaded(store: Store, lines: Sequence[tuple[Line, bool]]) -> Iterator[_Loaded]:
    """The arrays of the first run of some lines, read on all cores, a few lines ahead."""

    def load(line: Line) -> _Loaded:
        files: list[dict[str, np.ndarray] | _UnusableError] = []
        for path, names in zip(_files(store, line.first), (("ids", "maps"), ("ids", "logits")), strict=True):
            try:
                files.append(_arrays(path, *names))
            except _UnusableError as reason:
                files.append(reason)
        return _Loaded(tuple(files))

    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(lines), 2 * workers):
            yield from pool.map(load, (line for line, _ in lines[start : start + 2 * workers]))


def _files(store: Store, row: Row) -> tuple[Path, Path]:
    """The example maps of a run and its scores."""
    folder = store.run_dir(row.stage)
    return folder / "examples.npz", folder / "scores.npz"


def _arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise _UnusableError("no example maps are stored")
    try:
        return read_npz(path, names)
    except Exception as problem:  # noqa: BLE001 - on damaged files zipfile and numpy raise whatever comes to pass
        raise _UnusableError(f"{path} cannot be read ({problem})") from None


def _line_facts(line: Line, main: bool) -> dict[str, Any]:
    """Facts on every card of a line; thresholds as bins, None where undefined."""
    r = line.first
    taus = {k: None if math.isnan(t) else round(t * STEPS) for k, t in (("val", r.tau_val), ("oracle", r.tau_oracle))}
    return {
        "method": line.marked, "backbone": r.backbone, "selection": r.selection, "own": main, "protocol": r.protocol,
        "train": r.train, "eval": r.eval, "synthetic": r.synthetic, "tau": taus, "run": f"fold {r.fold}, seed {r.seed}",
        "map": line.map, "classes": list(r.classes),
    }  # fmt: skip


def _viridis() -> str:
    """The colours of the maps, as in the figures: 256 times RRGGBB."""
    from matplotlib import colormaps

    return bytes(itertools.chain.from_iterable(colormaps["viridis"](np.arange(256), bytes=True)[:, :3])).hex()
