"""Starting weights of a backbone: `none`, `imagenet` (by exact timm tag) or a file. Importing this imports no torch."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ...benchmark.core.errors import BenchError
from .weights_hub import (
    IMAGENET_TAGS,
    imagenet_file,
    sha256_of,
    timm_config,
    why_unreachable,
)

if TYPE_CHECKING:
    from torch import Tensor

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


def weights_file(weights: str, backbone: str) -> Path:
    """The file of starting weights; ImageNet's may have to be fetched first."""
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
