"""A results folder as finished stages leave it, with smooth made-up maps, so that tables and figures look real."""

import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, zoom

from wsolbench.benchmark.core.files import key_of, write_npz
from wsolbench.benchmark.core.metrics import BINS
from wsolbench.benchmark.core.results_store import Store
from wsolbench.reports.drawing import base
from wsolbench.reports.rows.load import Findings, collect

EXPLAINERS = {"cam": 2.2, "gradcampp": 1.9, "layercam": 2.6}
TRAINED = {"classifier": 0.0, "pixelcam": 3.6, "unet": 7.0}
BASELINES = ("constant", "darkness", "random")
EDGES = np.append(np.append(np.arange(0, 1, 0.001), 1.0), 2.0)
ENVIRONMENT = {
    "wsolbench": "0.1.0",
    "python": "3.11.9",
    "torch": "2.15.0",
    "commit": "0123456789abcdef",
    "device": "cpu",
}


@dataclass(frozen=True)
class Target:
    """Another set to score every model on. ease: how much of a map's quality is left there."""

    dataset: str
    shift: str = ""
    level: int = 0
    severity: float | None = None
    axis: str = ""
    pixel_change: float | None = None
    ease: float = 0.6
    classes: tuple[str, str] = ("benign", "malignant")
    regions: tuple[bool, bool] = (True, True)
    foreground: str = "every gland"

    @property
    def name(self) -> str:
        return self.dataset + (f":{self.shift}-{self.level}" if self.shift else "")


def lymph(name: str = "camelyon16", ease: float = 0.5, **more) -> Target:
    """A set whose first class is all background."""
    look = {"classes": ("normal", "tumor"), "regions": (False, True), "foreground": "tumour tissue, nothing else"}
    return Target(name, ease=ease, **{**look, **more})


def ladder(
    dataset: str, shift: str, severities: tuple[float | None, ...], axis: str, changes: tuple[float | None, ...] = ()
) -> tuple[Target, ...]:
    """The levels of one shift, the mildest first; changes: of the pixels, 3 grey levels more a level if not given."""
    changes = changes or tuple(3.0 * k for k in range(1, len(severities) + 1))
    return tuple(
        Target(dataset, shift, level, severity, axis, change, 1 - 0.13 * level)
        for level, (severity, change) in enumerate(zip(severities, changes, strict=True), 1)
    )


@dataclass(frozen=True)
class Recipe:
    """What to write: sizes, names and how much of it."""

    size: int = 32
    images: int = 12
    seeds: tuple[int, ...] = (0, 1)
    folds: tuple[str, ...] = ("0",)
    protocols: tuple[str, ...] = ("fair", "paper")
    backbones: tuple[str, ...] = ("resnet18",)
    synthetic: bool = True
    dataset: str = "glas"
    targets: tuple[Target, ...] = ()
    epochs: int = 8
    train_setting: int = 20
    region_classes: tuple[bool, bool] = (True, True)
    notes: tuple[str, ...] = ("The published folds share patients between training and validation (3 of 15).",)
    extra_methods: dict[str, float] = field(default_factory=dict)


class Writer:
    """Writes stages one by one; what it returns is the stage key."""

    def __init__(self, root: Path, recipe: Recipe) -> None:
        self.store, self.recipe = Store(root), recipe
        rng = np.random.default_rng(5)
        self.labels = np.arange(recipe.images) % 2
        self.ids = np.array([f"test_{k:02d}" for k in range(recipe.images)])
        self.groups = np.array([f"patient-{k // 2}" for k in range(recipe.images)])
        pairs = [picture(recipe.size, bool(label), rng) for label in self.labels]
        self.images, self.masks = (np.stack(a) for a in zip(*pairs, strict=True))
        self.val = slice(0, 6)
        self.shown = np.arange(min(6, recipe.images))
        self.home = Target(recipe.dataset, ease=1.0, regions=recipe.region_classes)
        for target in (self.home, *recipe.targets):
            s = self.shown
            arrays = {"images": self.images[s], "masks": self.masks_of(target)[s], "labels": self.labels[s]}
            write_npz(root / "examples" / f"{self.stem(target)}.npz", {"ids": self.ids[s], **arrays})

    def stem(self, target: Target) -> str:
        """The name of the file of example images."""
        return key_of([target.name, self.recipe.size])

    def masks_of(self, target: Target) -> np.ndarray:
        """The masks as that set would draw them: nothing where its class has no region."""
        return self.masks & np.asarray(target.regions)[self.labels][:, None, None]

    def all(self) -> None:
        """Every method of the recipe."""
        r = self.recipe
        for fold in r.folds:
            for seed in r.seeds:
                for backbone in r.backbones:
                    self.trainings(fold, seed, backbone)
            for protocol in r.protocols:
                for name in BASELINES:
                    self.score(name, "", protocol, "-", fold, 0, "-", 0.3)

    def trainings(self, fold: str, seed: int, backbone: str) -> None:
        """The classifier and its explainers, and the trained methods."""
        classifier = self.train("classifier", fold, seed, backbone, {})
        for protocol in self.recipe.protocols:
            for selection in ("loc", "cl", "last"):
                if selection != "loc":
                    self.score("classifier", classifier, protocol, selection, fold, seed, backbone, 0.0)
                for name, quality in (EXPLAINERS | self.recipe.extra_methods).items():
                    self.score(name, classifier, protocol, selection, fold, seed, backbone, quality)
        for name in ("pixelcam", "unet"):
            parents = {"init": classifier} if name == "pixelcam" else {}
            key = self.train(name, fold, seed, backbone, parents)
            for protocol in self.recipe.protocols:
                for selection in ("loc", "cl", "last"):
                    self.score(name, key, protocol, selection, fold, seed, backbone, TRAINED[name])

    def train(self, name: str, fold: str, seed: int, backbone: str, parents: dict[str, str]) -> str:
        """A training's record and history."""
        r = self.recipe
        labels = {"method": name, "options": "", "backbone": backbone, "train": r.dataset, "fold": fold, "seed": seed}
        identity = {
            "method": {"name": name, "version": 1},
            "train": {"epochs": r.train_setting},
            "seed": seed,
            "data": fold,
        }
        key = key_of(["train", labels, identity])
        rng = np.random.default_rng(int(key[:8], 16))
        maps = list(EXPLAINERS) if name == "classifier" else [name]
        lines = []
        for epoch in range(r.epochs + 1):
            done = 1 - np.exp(-3 * epoch / r.epochs)
            peak = np.exp(-3 * (epoch / r.epochs - 0.4) ** 2)
            entry = {"epoch": epoch, "val": {"accuracy": 50 + 45 * done + rng.normal(0, 2), "loss": 0.7 - 0.4 * done}}
            entry["valpx"] = {
                f"{p}/{m}": {"pxap": 40 + (25 + 3 * i) * peak + rng.normal(0, 1), "dice_at_half": None}
                for p in r.protocols for i, m in enumerate(maps)
            }  # fmt: skip
            if epoch:
                entry.update(
                    lr=0.01, seconds=1.0, losses={"total": 0.8 * np.exp(-2 * done), "ce": 0.6 * np.exp(-2 * done)}
                )
            lines.append(json.dumps(entry))
        folder = self.store.run_dir(key)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "history.jsonl").write_text("\n".join(lines) + "\n")
        self.store.finish(key, {
            "kind": "train", "identity": identity, "parents": parents, "labels": labels, "environment": ENVIRONMENT,
            "facts": {"synthetic": r.synthetic, "supervision": supervision(name, "-"), "notes": [], "images": 67,
                      "unlike_published": []},
            "roles": {}, "epochs": r.epochs, "seconds": 10.0 + seed, "images_per_second": 80.0,
            "parameters": 11_177_538, "peak_memory_mb": 900.0,
        })  # fmt: skip
        return key

    def score(
        self,
        name: str,
        trained: str,
        protocol: str,
        selection: str,
        fold: str,
        seed: int,
        backbone: str,
        quality: float,
    ) -> str:
        """A test score and the validation score it builds on; returns the key of the former."""
        what = (name, trained, protocol, selection, fold, seed, backbone, quality)
        val = self._score(*what, "val", {}, self.home)
        wanted = [t for t in self.recipe.targets if selection in ("cl", "-") or not t.shift]  # keeps the folder small
        for target in wanted:
            self._score(*what, "test", {"val": val}, target)
        return self._score(*what, "test", {"val": val}, self.home)

    def _score(
        self, name, trained, protocol, selection, fold, seed, backbone, quality, split, parents, target: Target
    ) -> str:
        r = self.recipe
        kind = "none" if name == "classifier" else "prob" if name in ("pixelcam", "unet") else "score"
        map_class = (
            "-"
            if kind == "none"
            else "any"
            if kind == "prob" or not trained
            else {"fair": "region"}.get(protocol, "true")
        )
        labels = {
            "method": name, "options": "", "backbone": backbone, "train": r.dataset, "eval": target.name,
            "split": split, "fold": fold, "seed": seed, "selection": selection, "protocol": protocol,
            "map_class": map_class,
        }  # fmt: skip
        parents = {**parents, **({"checkpoint": trained} if trained else {})}
        key = key_of(["score", labels, parents])
        rng = np.random.default_rng(int(key[:8], 16))
        rows = self.val if split == "val" else slice(None)
        masks, labels_of = self.masks_of(target)[rows], self.labels[rows]
        factor = {"loc": 1.0, "cl": 0.85, "last": 0.7, "-": 1.0}[selection] * target.ease
        maps = None if kind == "none" else np.stack([score_map(m, quality * factor, name, rng) for m in masks])
        fg, bg = histograms(maps, masks)
        logits = rng.normal(0, 1, (len(masks), 2)) + 2.2 * target.ease * np.eye(2)[labels_of]
        logits = logits if trained else np.full_like(logits, np.nan)
        folder = self.store.run_dir(key)
        write_npz(folder / "scores.npz", {
            "ids": self.ids[rows], "labels": labels_of.astype(np.int64), "groups": self.groups[rows], "foreground": fg,
            "background": bg, "logits": logits.astype(np.float32), "scale": np.array([0.0, 1.0]),
        })  # fmt: skip
        if split == "test" and maps is not None:
            write_npz(
                folder / "examples.npz", {"ids": self.ids[self.shown], "maps": maps[self.shown].astype(np.float16)}
            )
        epoch = {"loc": 3, "cl": 6, "last": r.epochs, "-": None}[selection]
        self.store.finish(key, {
            "kind": "score", "parents": parents, "labels": labels, "environment": ENVIRONMENT, "seconds": 3.1,
            "identity": {"method": {"name": name, "version": 1}, "protocol": rules_of(protocol), "seed": seed},
            "facts": {
                "synthetic": r.synthetic, "supervision": supervision(name, trained), "kind": kind,
                "classes": list(target.classes), "region_classes": list(target.regions),
                "positive_class": 1, "foreground": target.foreground, "group": "patient", "evaluation": {
                    "dataset": target.dataset, "shift": target.shift, "level": target.level,
                    "severity": target.severity, "axis": target.axis, "pixel_change": target.pixel_change,
                },
                "licence": "CC BY 4.0", "notes": list(r.notes), "parameters": 11_177_538 if trained else 0,
                "epoch": epoch + seed if epoch and selection != "last" else epoch, "images": len(masks),
                "degenerate": 0, "weights_sha256": key * 3 if trained else "",
                "family": "gradient" if trained else "baseline",
                "examples": self.stem(target) if split == "test" else "",
            },
        })  # fmt: skip
        return key


def rules_of(protocol: str) -> dict[str, str]:
    """What a report reads of a protocol in a record."""
    return {"name": protocol, "map_class": "region" if protocol == "fair" else "true"}


def supervision(name: str, trained: str) -> str:
    """What a method's training sees."""
    return "none" if not trained else "pixel" if name == "unet" else "image"


def picture(size: int, malignant: bool, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A stained-looking image (size, size, 3) uint8 and the mask of its glands."""
    y, x = np.mgrid[:size, :size] / size
    mask, lumen = np.zeros((2, size, size), bool)
    for _ in range(16 if malignant else 9):
        cy, cx = rng.random(2)
        radius = rng.uniform(0.08, 0.16)
        angle = np.arctan2(y - cy, x - cx)
        edge = radius * (1 + (0.25 if malignant else 0.08) * np.sin(rng.integers(3, 6) * angle + rng.random() * 6))
        distance = np.hypot(y - cy, x - cx)
        mask |= distance < edge
        lumen |= distance < edge * (0.3 if malignant else 0.55)
    texture = gaussian_filter(rng.normal(0, 1, (size, size)), size / 60)
    texture /= texture.std()
    image = np.empty((size, size, 3))
    image[:] = (232, 180, 208)
    image[mask] = (150, 95, 165)
    image[lumen & mask] = (243, 236, 242)
    image += texture[..., None] * np.array([12, 16, 9])
    return image.clip(0, 255).astype(np.uint8), mask


def score_map(mask: np.ndarray, quality: float, name: str, rng: np.random.Generator) -> np.ndarray:
    """A map in [0, 1] that knows as much of the mask as `quality` says; coarse for explainers."""
    size = mask.shape[0]
    if name == "constant":
        return np.zeros(mask.shape)
    if name == "random":
        return rng.random(mask.shape)
    coarse = zoom(rng.normal(0, 1, (8, 8)), size / 8, order=1)
    blur = size / 80 if name == "unet" else size / 32
    signal = gaussian_filter(mask.astype(float), blur) - 0.4
    return 1 / (1 + np.exp(-(quality * signal * 0.8 + coarse * 0.9 - 0.3)))


def histograms(maps: np.ndarray | None, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per-image counts, by numpy.histogram."""
    if maps is None:
        return np.zeros((len(masks), 0), np.uint16), np.zeros((len(masks), 0), np.uint16)
    out = np.zeros((2, len(masks), BINS), np.uint16)
    for k, (m, t) in enumerate(zip(maps, masks, strict=True)):
        out[0, k], out[1, k] = (np.histogram(m[where], EDGES)[0] for where in (t, ~t))
    return out[0], out[1]


def make_results(root: Path, recipe: Recipe | None = None) -> Store:
    """A whole results folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # made-up results need not survive a power cut
        writer = Writer(root, recipe or Recipe())
        writer.all()
    return writer.store


@pytest.fixture(scope="session", autouse=True)
def _small_pictures():
    """Pictures of few pixels: what is looked at here are the artists and the files, and these take seconds less."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "DPI", 45)
        yield


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A folder to read, shared by the tests: do not write to it."""
    return make_results(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="session")
def found(results: Store) -> Findings:
    """All that a report reads of that folder."""
    return collect(results)


@pytest.fixture(scope="session")
def _small(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return make_results(tmp_path_factory.mktemp("small"), Recipe(seeds=(0,), protocols=("fair",)))


@pytest.fixture
def small(_small: Store, tmp_path: Path) -> Store:
    """A small folder of one's own, free to be damaged."""
    shutil.copytree(_small.root, tmp_path / "results")
    return Store(tmp_path / "results")


@pytest.fixture(scope="session")
def write_results():
    """`make_results`, for tests that want a folder of their own."""
    return make_results


TARGETS = (
    lymph(), lymph("camelyon17:centre-2", 0.4),
    *ladder("glas", "stain", (0.02, 0.06, 0.1), "standard deviation of the HED shift"),
    *ladder("glas", "blur", (0.5, 1, 2), "sigma [px]"),
    *ladder("glas", "restain", (None,) * 3, "target stain", (18.5, 32.7, 9.2)),
)  # fmt: skip


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A folder with out-of-domain sets and shifted ones, shared by the tests: do not write to it."""
    recipe = Recipe(images=8, targets=TARGETS, protocols=("fair",))
    store = make_results(tmp_path_factory.mktemp("wide"), recipe)
    back = Recipe(
        dataset="camelyon16", seeds=(0,), region_classes=(False, True), protocols=("fair",), train_setting=30,
        targets=(Target("glas", ease=0.7),),
    )  # fmt: skip
    make_results(store.root, back)
    return store


@pytest.fixture(scope="session")
def wide_found(wide: Store) -> Findings:
    """All that a report reads of that folder."""
    return collect(wide)


@pytest.fixture(scope="session")
def recipe():
    """The class Recipe, for tests that change something."""
    return Recipe


@pytest.fixture(scope="session")
def other_set():
    """A set whose first class is all background, for recipes of one's own."""
    return lymph()
