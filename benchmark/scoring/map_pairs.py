"""Anybody's score maps paired with the masks of a folder or with the images of a dataset, by name or by path."""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ...datasets.base import Item
from ..core.errors import BenchError, many

MAP_FILES = (".npz", ".npy", ".png", ".tif", ".tiff")
MASK_FILES = (".png", ".bmp", ".tif", ".tiff", ".npz", ".npy")
MASK_SUFFIXES = ("_anno", "_mask")  # GlaS calls the mask of train_1.bmp train_1_anno.bmp
IMAGE_FILES = (".jpg", ".jpeg", ".webp", ".bmp")
_ENDINGS = frozenset((*MAP_FILES, *MASK_FILES, *IMAGE_FILES))
_RUBBISH = ("__macosx", "thumbs.db", "desktop.ini")  # what archives and file managers add; hidden files too
NAMED = 5  # files that a message names


@dataclass(frozen=True)
class MapPair:
    """One image to score: its id, its map, and its mask (None: a background image of a dataset)."""

    id: str
    map: Path
    mask: Path | None


def pair_files(maps: Path, masks: Path, ids: Sequence[str] | None = None) -> list[MapPair]:
    """Maps and masks matched by name, sorted by id. `ids` limits both folders to these images.

    Folders inside are looked into. The name of a file is what is left without its endings (`a.jpg.npy` is `a`). Files
    are matched by name alone where every name is there once, else by their path below the folder. The mask of `a` is
    `a_anno` or `a_mask` if there is one (a plain `a` beside it is then the image), else `a`. Raises BenchError for a
    missing or empty folder, two files of one name, and a map without mask or a mask without map.
    """
    map_files, mask_files = find_files(maps, MAP_FILES, "maps"), find_files(masks, MASK_FILES, "masks")
    by_name = _all_once(map_files) and _all_once(mask_files)
    if by_name:
        map_files, mask_files = _by_name(map_files), _by_name(mask_files)
    keys = {i: i for i in map_files} if ids is None else _keys_of_ids(ids, map_files, by_name)
    mask_of = {name: mask for name in map_files if (mask := _mask_of(name, mask_files))}
    _complain([i for i, key in keys.items() if key not in map_files], ("image", "map", maps), list(map_files))
    why = "" if by_name else " Paths are compared, because a name is there twice in one of the folders."
    _complain([i for i, key in keys.items() if key not in mask_of], ("map", "mask", masks), list(mask_files), why)
    if ids is None:
        used = set(mask_of.values())
        shadowed = {s for s in mask_files if any(s + suffix in mask_files for suffix in MASK_SUFFIXES)}
        left = [s for s, path in mask_files.items() if path not in used and s not in shadowed]
        advice = f"{why} To score only some of the masks, list their images with --labels."
        _complain(left, ("mask", "map", maps), list(map_files), advice)
    return [MapPair(i, map_files[keys[i]], mask_of[keys[i]]) for i in sorted(keys)]


def _keys_of_ids(ids: Sequence[str], maps: Mapping[str, Path], by_name: bool) -> dict[str, str]:
    """Id -> key of its map: the id itself, or what stands after its last slash, if no other id ends alike."""
    ends = Counter(map(_name, ids))
    return {i: _name(i) if by_name and i not in maps and ends[_name(i)] == 1 else i for i in ids}


def pair_items(maps: Path, items: Sequence[Item], where: str) -> tuple[list[MapPair], list[str]]:
    """The maps of the images of a dataset, in their order, and notes on how they were matched.

    A map is matched by the id of the image, by the end of its path, or by its file name, the first way in which each
    image has one of its own. Raises BenchError, naming them, for images without a map or with several.
    """
    files = find_files(maps, MAP_FILES, "maps")
    by_name = _by_name(files) if _all_once(files) else {}
    ways: dict[str, tuple[Mapping[str, Path], Callable[[Item], str]]] = {
        "id": (files, lambda i: bare_name(i.id)),
        "path": (files, lambda i: _longest_tail(i.image, files)),
        "file name": (by_name, lambda i: bare_name(i.image.name)),
    }
    best, matched = "", dict[str, Path]()
    for way, (held, key_of) in ways.items():
        map_of = {item.id: held[key] for key, item in _keys(items, key_of).items() if key in held}
        if len(map_of) > len(matched):
            best, matched = way, map_of
    bare = [i.id for i in items if i.id not in matched]
    _complain(bare, ("image", "map", maps), list(files), of=f" of {where}")
    left = sorted(set(files.values()) - set(matched.values()))
    notes = [f"maps were matched to the images of {where} by their {best}"]
    if left:
        notes.append(f"{many(len(left), 'map')} in {maps} belong to no image of {where}: {_some(p.name for p in left)}")
    return [MapPair(i.id, matched[i.id], i.mask) for i in items], notes


def find_files(folder: Path, kinds: tuple[str, ...], what: str) -> dict[str, Path]:
    """Files of these kinds in a folder and the folders inside, by their path below it without endings.

    Hidden files and what file managers add are passed over. Raises BenchError for a folder that is missing or holds
    none, and for two files of one name.
    """
    if not folder.is_dir():
        raise BenchError(f"The folder of {what} {folder} does not exist.")
    by_name: dict[str, Path] = {}
    files = _files_below(folder)
    for path in files:
        inside = path.relative_to(folder)
        rubbish = any(p.startswith(".") or p.lower() in _RUBBISH for p in inside.parts)
        if rubbish or path.suffix.lower() not in kinds:
            continue
        key = bare_name(inside.as_posix())
        if key in by_name:
            raise BenchError(f"{folder} has two {what} of one name: {by_name[key].name} and {path.name}. Keep one.")
        by_name[key] = path
    if not by_name:
        other = Counter(p.suffix.lower() for p in files if not p.name.startswith("."))
        held = f" It holds files ending in {', '.join(sorted(other)[:NAMED])}." if other else ""
        lossy = {".jpg", ".jpeg", ".webp"} & set(other)
        blurred = " JPEG and WebP change values, so they are not read." if lossy else ""
        raise BenchError(f"{folder} holds no {what}: they are files ending in {', '.join(kinds)}.{held}{blurred}")
    return by_name


def _files_below(folder: Path) -> list[Path]:
    """All files, those behind links to folders too, sorted by path; a link to a folder around it is not followed."""
    files: list[Path] = []
    for root, folders, names in os.walk(folder, followlinks=True):
        parent = Path(root)
        above = {parent.resolve(), *parent.resolve().parents}
        folders[:] = [name for name in folders if (parent / name).resolve() not in above]
        files += [parent / name for name in names if (parent / name).is_file()]
    return sorted(files)


def bare_name(name: str) -> str:
    """A name or path without endings of images, maps and arrays, in one Unicode form: macOS decomposes letters."""
    name = unicodedata.normalize("NFC", name.replace("\\", "/"))
    while (suffix := PurePosixPath(name).suffix) and suffix.lower() in _ENDINGS:
        name = name[: -len(suffix)]
    return name


def _name(key: str) -> str:
    return key.rpartition("/")[2]


def _all_once(files: Mapping[str, Path]) -> bool:
    return max(Counter(map(_name, files)).values()) == 1


def _by_name(files: Mapping[str, Path]) -> dict[str, Path]:
    return {_name(key): path for key, path in files.items()}


def _mask_of(name: str, masks: Mapping[str, Path]) -> Path | None:
    return next((masks[s] for s in [name + suffix for suffix in MASK_SUFFIXES] + [name] if s in masks), None)


def _longest_tail(image: Path, files: Mapping[str, Path]) -> str:
    """The longest end of an image's path that is the path of a map below its folder; empty without one."""
    parts = bare_name(image.as_posix()).split("/")
    return next((key for k in range(len(parts)) if (key := "/".join(parts[k:])) in files), "")


def _keys(items: Sequence[Item], key_of: Callable[[Item], str]) -> dict[str, Item]:
    """Key -> image, without keys that several images have."""
    by_key: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        by_key[key_of(item)].append(item)
    return {key: same[0] for key, same in by_key.items() if key and len(same) == 1}


def _complain(
    names: list[str], what: tuple[str, str, Path], held: Sequence[str], advice: str = "", of: str = ""
) -> None:
    """Raises BenchError if there are `names` of one kind without a file of the other kind among `held`."""
    if not names:
        return
    have, lack, folder = what
    lower = {_name(h).casefold() for h in held}
    same = [n for n in names if _name(n).casefold() in lower and _name(n) not in {_name(h) for h in held}]
    capitals = " Some names differ in capital letters only: spell them alike." if same else ""
    verb = "has" if len(names) == 1 else "have"
    raise BenchError(
        f"{many(len(names), have)}{of} {verb} no {lack} in {folder}: {_some(names)}. A map and its mask share the name "
        f"(endings aside); the mask may add {' or '.join(MASK_SUFFIXES)}.{capitals}{advice}"
    )


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
