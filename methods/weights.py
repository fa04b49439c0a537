"""Starting weights of a backbone: `none`, `imagenet` (by exact timm tag) or a file. Importing this imports no torch."""

import functools
import hashlib
import pickle
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..benchmark.errors import BenchError
from ..benchmark.store import read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor

    from .backbones import Backbone

# The exact weights behind `imagenet` for the published backbones; a timm release may change its own default tag.
IMAGENET_TAGS = {
    "resnet18": "tv_in1k",
    "resnet34": "tv_in1k",
    "resnet50": "tv_in1k",
    "resnet101": "tv_in1k",
    "vgg16": "tv_in1k",
    "vgg16_bn": "tv_in1k",
    "inception_v3": "tv_in1k",
    "deit_tiny_patch16_224": "fb_in1k",
    "deit_small_patch16_224": "fb_in1k",
    "deit_base_patch16_224": "fb_in1k",
    "vit_tiny_patch16_224": "augreg_in21k_ft_in1k",
    "vit_small_patch16_224": "augreg_in1k",
    "vit_base_patch16_224": "augreg_in1k",
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
    return {"source": "file", "sha256": _sha256(_weights_path(weights))}


def imagenet_tag(backbone: str) -> str:
    """The full timm name of the ImageNet weights, such as `resnet50.tv_in1k`; a tag in the name itself wins."""
    architecture, _, tag = backbone.partition(".")
    if tag:
        return backbone
    if architecture in IMAGENET_TAGS:
        return f"{architecture}.{IMAGENET_TAGS[architecture]}"
    config = _timm_config(backbone)
    if config is None or not config.tag:
        raise BenchError(
            f"timm has no ImageNet weights for backbone '{backbone}'. "
            "Give a weights file with --weights FILE, or train from random weights with --weights none."
        )
    return f"{architecture}.{config.tag}"


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
        **weights_identity(weights, backbone.name), "sha256": _sha256(path),
        "tensors": len(tensors), "ignored": ignored,
    }  # fmt: skip


def check_weights_fit(backbone: str, weights: str, stride: int | None = None, pins: Path | None = None) -> None:
    """Raises the BenchError that `load_weights` would raise, without allocating the network."""
    from .backbones import create_backbone

    body = create_backbone(backbone, stride, device="meta")
    if weights != "none":
        path = _resolve(weights, backbone)
        _check_pins(weights, backbone, path, pins, add=False)
        _fit(body, read_state(path, shapes_only=True), path)
        _check_finite(path)


def _check_pins(weights: str, backbone: str, path: Path, pins: Path | None, add: bool) -> None:
    """Holds the file of an ImageNet tag against the one this results folder was begun with; the first one is kept."""
    if weights != "imagenet" or pins is None:
        return
    tag, found = imagenet_tag(backbone), _sha256(path)
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
def _weights_path(weights: str) -> Path:
    path = Path(weights).expanduser()
    if not path.is_file():
        raise BenchError(
            f"There is no weights file {path}. --weights takes none, imagenet, or the path of a .safetensors file."
        )
    if path.suffix not in SUFFIXES:
        raise BenchError(f"Weights file {path}: '{path.suffix}' is not read. Use {', '.join(SUFFIXES)}.")
    return path


def _resolve(weights: str, backbone: str) -> Path:
    return _imagenet_file(imagenet_tag(backbone)) if weights == "imagenet" else _weights_path(weights)


def _timm_config(name: str) -> Any:
    from timm.models import get_pretrained_cfg

    try:
        return get_pretrained_cfg(name, allow_unregistered=False)
    except (RuntimeError, KeyError):
        return None


def _imagenet_file(tag: str) -> Path:
    """The file of a timm tag, from the local cache or the hub. Raises BenchError, without waiting, if offline."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    config = _timm_config(tag)
    hub_id = getattr(config, "hf_hub_id", None)
    if not hub_id:
        raise BenchError(f"timm knows no downloadable weights '{tag}'. Give a file: --weights FILE.")
    hub_id = hub_id if "/" in hub_id else f"timm/{tag}"
    cached = try_to_load_from_cache(hub_id, "model.safetensors")
    if isinstance(cached, str):
        return _sound_copy(Path(cached))
    try:
        _look_up_hub()  # the hub's client would retry for most of a minute
        return _sound_copy(Path(hf_hub_download(hub_id, "model.safetensors")))
    except (OSError, RuntimeError, ValueError, HfHubHTTPError) as problem:
        raise BenchError(
            f"The ImageNet weights {tag} are not on this machine and cannot be fetched ({problem}). Where there is a "
            f"network, take model.safetensors from {hub_id} on the Hugging Face hub, copy it here and give its path "
            "(--weights PATH/model.safetensors); or train from random weights (--weights none)."
        ) from problem


def _sound_copy(path: Path) -> Path:
    """A file of the hub's cache, which names files by their hash: a copy that was altered or cut short is refused."""
    named = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", named) and _sha256(path) != named:
        raise BenchError(
            f"The cached weights {path} are not what was downloaded: their SHA-256 is {_sha256(path)}, not {named}. "
            f"Delete {path.resolve()} and download again, or give a file with --weights FILE."
        )
    return path


def _look_up_hub() -> None:
    from huggingface_hub import constants

    if urllib.request.getproxies():
        return  # the proxy looks names up
    address = urllib.parse.urlparse(constants.ENDPOINT)
    socket.getaddrinfo(address.hostname, address.port or 443)


def _sha256(path: Path) -> str:
    status = path.stat()
    return _hash_of(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(64)
def _hash_of(path: Path, size: int, changed: int) -> str:
    """The hash of a file that has this size and time: a plan asks for it once a backbone, a run once a training."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -- what is in it --------------------------------------------------------------------------------------------------
def read_state(path: Path, shapes_only: bool = False) -> dict[str, "Tensor"]:
    """Tensors of a weights file by name, on the CPU, or on the meta device if only their shapes are asked for.

    Raises BenchError for a broken file and for one that only unpickling arbitrary code could read.
    """
    state = _read_safetensors(path, shapes_only) if path.suffix == ".safetensors" else _read_torch(path, shapes_only)
    if not state:
        raise BenchError(f"Weights file {path} holds no tensors.")
    return state


def _read_safetensors(path: Path, shapes_only: bool) -> dict[str, "Tensor"]:
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            if shapes_only:
                return {k: torch.empty(file.get_slice(k).get_shape(), device="meta") for k in file.keys()}  # noqa: SIM118
            return {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as problem:
        raise BenchError(
            f"Weights file {path} is not a readable safetensors file ({problem}). Copy or download it again."
        ) from problem


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
