"""Starting weights of a backbone: `none`, `imagenet` (by exact timm tag) or a file. Importing this imports no torch."""

import functools
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...benchmark.core.errors import BenchError
from ...benchmark.core.files import read_json, write_json
from .weights_hub import (
    IMAGENET_TAGS,
    cached_file,
    imagenet_file,
    refuse_unreachable,
    sha256_of,
    timm_config,
    why_unreachable,
)

if TYPE_CHECKING:
    from torch import Tensor

    from .adapter import Backbone

# Own grid stride, strides to be had, and abilities of the published backbones, for listing without torch.
_CNN, _VIT = ("batchnorm", "grid", "pyramid"), ("attention", "grid", "pyramid", "tokens")
PUBLISHED_SHAPES: dict[str, tuple[int, tuple[int, ...], tuple[str, ...]]] = {
    **{name: (32, (1, 2, 4, 8, 16, 32), _CNN) for name in IMAGENET_TAGS if name.startswith("resnet")},
    "vgg16": (32, (1, 2, 4, 8, 16, 32), ("grid", "pyramid")),
    "vgg16_bn": (32, (1, 2, 4, 8, 16, 32), _CNN),
    "inception_v3": (32, (8, 32), _CNN),
    **{name: (16, (16,), _VIT) for name in IMAGENET_TAGS if "_patch16_" in name},
}
PINS = "weights.json"  # in a results folder: the SHA-256 of every ImageNet file its rows were made from
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
WRAPPERS = ("state_dict", "model")
PREFIXES = ("backbone.net.", "module.", "model.", "backbone.", "encoder.", "net.")
REBUILT = ("num_batches_tracked", "relative_position_index", "relative_coords_table", "attn_mask")


def weights_identity(weights: str, backbone: str) -> dict[str, str]:
    """What of the starting weights enters a stage key.

    {"source": "none"}, {"source": "imagenet", "tag": "resnet50.tv_in1k"} or {"source": "file", "sha256": …}; where a
    file lies is no part of it. Asks timm only for backbones without a published tag. Raises BenchError for a file that
    is not there or of an unknown kind, and for a backbone that has no ImageNet weights.
    """
    if weights == "none":
        return {"source": "none"}
    if weights == "imagenet":
        return {"source": "imagenet", "tag": imagenet_tag(backbone)}
    return {"source": "file", "sha256": sha256_of(weights_path(weights))}


def imagenet_tag(backbone: str) -> str:
    """The full timm name of the ImageNet weights, such as `resnet50.tv_in1k`; a tag in the name itself wins.

    Raises BenchError for a network or tag that timm does not have.
    """
    architecture, _, tag = backbone.partition(".")
    if architecture in IMAGENET_TAGS and tag in ("", IMAGENET_TAGS[architecture]):
        return f"{architecture}.{IMAGENET_TAGS[architecture]}"
    config = timm_config(backbone)
    if tag:
        return backbone
    if not config.tag:
        raise BenchError(
            f"timm has no ImageNet weights for backbone '{backbone}'. "
            "Give a weights file with --weights FILE, or train from random weights with --weights none."
        )
    return f"{architecture}.{config.tag}"


def offline_notice(weights: str, backbone: str) -> str:
    """What is to be said where ImageNet weights are asked for and cannot be had here; else empty."""
    why = why_unreachable(imagenet_tag(backbone)) if weights == "imagenet" else ""
    return why and (
        f"{backbone}: its ImageNet weights are not on this machine and cannot be fetched ({why}). The preset smoke "
        "goes on from random weights, recorded as such; give a file with --weights FILE for real ones."
    )


def load_weights(backbone: "Backbone", weights: str, pins: Path | None = None) -> dict[str, Any]:
    """Loads starting weights into a backbone, in place, and returns what was loaded, to be recorded.

    Half precision becomes float32, heads in the file are ignored. The result holds `source`, and for files `sha256`,
    `tensors` (number loaded) and `ignored` (names). pins: file that keeps the hash of ImageNet weights, so that two
    files never stand behind one tag. Raises BenchError if the weights cannot be had, do not fit, are not finite, or
    are not those of the pins.
    """
    if weights == "none":
        return {"source": "none"}
    path = _resolve(weights, backbone.name)
    _check_pins(weights, backbone.name, path, pins, add=True)
    tensors, ignored = _fit(backbone, read_state(path), path)
    _check_finite(path)
    missing, _ = backbone.net.load_state_dict({n: _full(t) for n, t in tensors.items()}, strict=False)
    if [n for n in missing if not n.endswith(REBUILT)]:
        raise RuntimeError(f"checked weights did not load: {missing[:3]}")
    return {
        **weights_identity(weights, backbone.name), "sha256": sha256_of(path),
        "tensors": len(tensors), "ignored": ignored,
    }  # fmt: skip


def check_weights_fit(
    backbone: str, weights: str, stride: int | None = None, pins: Path | None = None, fetch: bool = True
) -> None:
    """Raises the BenchError that `load_weights` would raise, without allocating the network.

    fetch: whether ImageNet weights that are not on this machine may be fetched; else it is only asked whether they can.
    """
    from .adapter import create_backbone

    body = create_backbone(backbone, stride, device="meta")
    if weights == "imagenet" and not fetch and cached_file(imagenet_tag(backbone)) is None:
        refuse_unreachable(imagenet_tag(backbone))
    elif weights != "none":
        path = _resolve(weights, backbone)
        _check_pins(weights, backbone, path, pins, add=False)
        _fit(body, read_state(path, shapes_only=True), path)
        _check_finite(path)


def _check_pins(weights: str, backbone: str, path: Path, pins: Path | None, add: bool) -> None:
    """Holds the file of an ImageNet tag against the one this results folder was begun with; the first one is kept."""
    if weights != "imagenet" or pins is None:
        return
    tag, found = imagenet_tag(backbone), sha256_of(path)
    known = read_json(pins) if pins.is_file() else {}
    if known.get(tag, found) != found:
        raise BenchError(
            f"The ImageNet weights {tag} ({path}) have the SHA-256 {found}, and rows in this results folder were made "
            f"from {known[tag]} ({pins}). The file was changed upstream or here; rows of both must not stand "
            "in one table. Put the earlier file back, or give another folder with --results."
        )
    if add and tag not in known:
        write_json(pins, {**known, tag: found})


def _check_finite(path: Path) -> None:
    """Training from NaN would diverge without a reason. Raises BenchError naming a tensor."""
    status = path.stat()
    bad = _not_finite(path, status.st_size, status.st_mtime_ns)
    if bad:
        raise BenchError(
            f"Weights file {path} holds NaN or infinite values in {len(bad)} tensors, first {bad[0]}. Take another."
        )


@functools.lru_cache(64)
def _not_finite(path: Path, size: int, changed: int) -> tuple[str, ...]:
    """The tensors with such values in a file of this size and time: asked once a method, read once."""
    return tuple(n for n, t in read_state(path).items() if t.is_floating_point() and not bool(t.isfinite().all()))


# -- where the file is ----------------------------------------------------------------------------------------------
def weights_path(weights: str) -> Path:
    """The file that `--weights` names. Raises BenchError if it is not there or of an unknown kind."""
    path = Path(weights).expanduser()
    if not path.is_file():
        raise BenchError(
            f"There is no weights file {path}. --weights takes none, imagenet, or the path of a .safetensors file."
        )
    if path.suffix not in SUFFIXES:
        raise BenchError(f"Weights file {path}: '{path.suffix}' is not read. Use {', '.join(SUFFIXES)}.")
    return path


def _resolve(weights: str, backbone: str) -> Path:
    return imagenet_file(imagenet_tag(backbone)) if weights == "imagenet" else weights_path(weights)


# -- what is in it --------------------------------------------------------------------------------------------------
def read_state(path: Path, shapes_only: bool = False) -> dict[str, "Tensor"]:
    """Tensors of a weights file by name, on the CPU, or on the meta device if only their shapes are asked for.

    Raises BenchError for a broken file and for one that only unpickling arbitrary code could read.
    """
    state = _read_safetensors(path, shapes_only) if path.suffix == ".safetensors" else _read_torch(path, shapes_only)
    if not state:
        raise BenchError(f"Weights file {path} holds no tensors.")
    return state


def metadata_of(path: Path) -> dict[str, str]:
    """The texts that a safetensors file carries beside its tensors; none for other kinds. Reads no tensor."""
    if path.suffix != ".safetensors":
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as problem:
        raise _unreadable(path, problem) from problem


def _unreadable(path: Path, problem: Exception) -> BenchError:
    return BenchError(f"Weights file {path} is not a readable safetensors file ({problem}). Copy or download it again.")


def _read_safetensors(path: Path, shapes_only: bool) -> dict[str, "Tensor"]:
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            if shapes_only:
                return {k: torch.empty(file.get_slice(k).get_shape(), device="meta") for k in file.keys()}  # noqa: SIM118
            return {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as problem:
        raise _unreadable(path, problem) from problem


def _read_torch(path: Path, shapes_only: bool) -> dict[str, "Tensor"]:
    import torch

    try:
        state = torch.load(path, map_location="meta" if shapes_only else "cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        raise BenchError(
            f"Weights file {path} holds pickled code, which is never run here. Where you trust it, save its state dict "
            "with safetensors.torch.save_file(model.state_dict(), 'weights.safetensors') and give that file."
        ) from problem
    except Exception as problem:  # on damaged files torch's reader raises whatever comes to pass
        raise BenchError(
            f"Weights file {path} cannot be read by torch ({problem}). Copy or download it again."
        ) from problem
    for wrapper in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping):
        raise BenchError(f"Weights file {path} holds a {type(state).__name__}, not a state dict of named tensors.")
    return {str(n): t for n, t in state.items() if isinstance(t, torch.Tensor)}


def _full(tensor: "Tensor") -> "Tensor":
    return tensor.float() if tensor.is_floating_point() else tensor


def _fit(backbone: "Backbone", state: Mapping[str, "Tensor"], path: Path) -> tuple[dict[str, "Tensor"], list[str]]:
    """The tensors that belong to the backbone, and the names of those that do not. Raises BenchError on a misfit."""
    wanted = backbone.net.state_dict()
    state = _rename(state, wanted)
    missing = [n for n in wanted if n not in state and not n.endswith(REBUILT)]
    wrong = [n for n in wanted if n in state and wanted[n].shape != state[n].shape]
    bodies = {n.partition(".")[0] for n in wanted if "." in n}
    left = [n for n in state if n not in wanted]
    surplus = [n for n in left if n.partition(".")[0] in bodies and not n.endswith(REBUILT)]
    complaints = []
    if missing:
        complaints.append(
            f"{len(missing)} of {len(wanted)} tensors are not in the file, first {', '.join(missing[:3])}"
        )
    if wrong:
        pairs = [f"{n} is {_shape(state[n])} in the file and {_shape(wanted[n])} in the network" for n in wrong[:3]]
        complaints.append(f"{len(wrong)} tensors have another shape, first: {'; '.join(pairs)}")
    if surplus:
        complaints.append(f"the file has {len(surplus)} tensors more, first {', '.join(surplus[:3])}")
    if complaints:
        raise BenchError(
            f"Weights {path} do not fit backbone '{backbone.name}': {'. '.join(complaints)}. "
            "Give the weights of this network (timm's parameter names), or the backbone the file was made for."
        )
    return {n: state[n] for n in wanted if n in state}, sorted(left)


def _rename(state: Mapping[str, "Tensor"], wanted: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Takes off a prefix some training codes put before every name, and finds a final norm stored as a head's."""
    best = max(("", *PREFIXES), key=lambda p: sum(n.removeprefix(p) in wanted for n in state if n.startswith(p)))
    state = {n.removeprefix(best): t for n, t in state.items() if n.startswith(best)}
    if "norm.weight" in wanted and "norm.weight" not in state:
        state = {("norm." + n.removeprefix("fc_norm.") if n.startswith("fc_norm.") else n): t for n, t in state.items()}
    return state


def _shape(tensor: "Tensor") -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
