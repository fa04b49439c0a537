"""Opened datasets with their manifests and content identities, read once per fold."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...datasets.base import Dataset, Manifest
from ...datasets.open import HASH_FILE, FileFacts, content_hashes, manifest_identity, open_dataset
from ...datasets.parts.identity import normal_group
from ...datasets.parts.leaks import with_allowed
from ..core.errors import BenchError
from ..core.results_store import key_of


class OpenDataset:
    """One opened dataset.

    trained: whether models learn from it, so that its splits must be apart. allowed: the leaks between them that the
    user allows by name (datasets/parts/leaks.py).
    """

    def __init__(
        self, name: str, data_root: Path, cache: Path, trained: bool = True, allowed: tuple[str, ...] = ()
    ) -> None:
        self._trained, self._allowed = trained, allowed
        self.name = name
        self.dataset: Dataset = open_dataset(name, data_root)
        self._cache = cache
        self._folds: dict[str, tuple[Manifest, dict[Path, FileFacts]]] = {}
        self._identities: dict[tuple[str, tuple[str, ...]], dict[str, Any]] = {}
        self._masked: dict[str, bool] = {}
        self.apart: set[tuple[str, str, str]] = set()  # fold, and dataset and fold whose test set was found disjoint

    @property
    def title(self) -> str:
        """The name of the dataset in tables: its own, not the path of its file."""
        return self.dataset.card.name

    def manifest(self, fold: str) -> Manifest:
        """The checked manifest of a fold."""
        return self._read(fold)[0]

    def identity(self, fold: str, splits: Iterable[str]) -> dict[str, Any]:
        """Identity of some splits of a fold in stage keys: the split itself and the content of its files."""
        place = (fold, tuple(splits))
        if place not in self._identities:
            manifest, facts = self._read(fold)
            self._identities[place] = manifest_identity(manifest, facts, place[1])
        return self._identities[place]

    def image_identity(self, fold: str, split: str) -> dict[str, Any]:
        """The content of the images of a split and nothing else of it: neither labels, groups nor masks."""
        manifest, facts = self._read(fold)
        rows = sorted((item.id, facts[item.image].sha256) for item in manifest.split(split))
        name, content = manifest.card.name, key_of([list(row) for row in rows])
        return {"name": name, "fold": fold, "split": split, "images": len(rows), "content": content}

    def hashes(self, fold: str) -> dict[str, str]:
        """SHA-256 of every file of a fold by path."""
        return {str(path): facts.sha256 for path, facts in self._read(fold)[1].items()}

    def facts(self, fold: str) -> dict[Path, FileFacts]:
        """Hash and size in px of every file of a fold."""
        return self._read(fold)[1]

    def has_validation_masks(self, fold: str) -> bool:
        """Whether a validation mask may be read."""
        if fold not in self._masked:  # asked for every row of a matrix, and a fold may have 50,000 images
            self._masked[fold] = any(i.pixel_val and i.mask is not None for i in self.manifest(fold).items)
        return self._masked[fold]

    def notes(self) -> list[str]:
        """Notices about the folds read so far, each once."""
        return list(dict.fromkeys(note for manifest, _ in self._folds.values() for note in manifest.notes))

    def _read(self, fold: str) -> tuple[Manifest, dict[Path, FileFacts]]:
        if fold not in self._folds:
            manifest = self.dataset.manifest(fold)
            facts = content_hashes(manifest, self._cache / HASH_FILE)
            if self._trained:
                manifest = with_allowed(manifest, facts, self._allowed)
            self._folds[fold] = (manifest, facts)
        return self._folds[fold]


def refuse_namesakes(open_datasets: Mapping[str, OpenDataset]) -> None:
    """Raises BenchError when two datasets of one run have the same name."""
    names = Counter(source.title for source in open_datasets.values())
    if twice := [n for n, count in names.items() if count > 1]:
        both = " and ".join(n for n, source in open_datasets.items() if source.title == twice[0])
        raise BenchError(f"{both} are both called '{twice[0]}'. Give one another '# name: …' line.")


def refuse_overlap(source: OpenDataset, fold: str, target: OpenDataset, target_fold: str) -> None:
    """Raises BenchError when a model's training or validation images, or their slides, are in another's test set.

    Images are compared by content; slides and patients by name where both datasets name them alike (`namespace`).
    """
    place = (fold, target.name, target_fold)
    if place in source.apart:  # asked again for every shift and level
        return
    seen_in = [i for i in source.manifest(fold).items if i.split != "test"]
    scored = target.manifest(target_fold).split("test")
    mine, theirs = source.hashes(fold), target.hashes(target_fold)
    contents = {mine[str(i.image)] for i in seen_in}
    shared = [i.id for i in scored if theirs[str(i.image)] in contents]
    what = "images"
    space = source.dataset.card.namespace
    if not shared and space and space == target.dataset.card.namespace:
        groups = {normal_group(i.group) for i in seen_in}
        shared = sorted({i.group for i in scored if normal_group(i.group) in groups})
        what = f"{source.dataset.card.group}s"
    if shared:
        some = ", ".join(shared[:5]) + (", …" if len(shared) > 5 else "")
        raise BenchError(
            f"{len(shared)} {what} of the test set of {target.title} are among the training or validation {what} of "
            f"{source.title}: {some}. A score there says nothing about other data. Leave one of the sets out, or name "
            "those to score on with --ood."
        )
    source.apart.add(place)
