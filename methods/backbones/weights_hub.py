"""What timm and its hub know of ImageNet weights: tags, configurations, files. Importing this imports no torch."""

import difflib
import functools
import hashlib
import http.client
import re
import threading
import urllib.request
from pathlib import Path
from typing import Any

from ...benchmark.core.errors import BenchError

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
PATIENCE = 4.0  # seconds to wait for the hub


class UnreachableError(BenchError):
    """Weights of a hub that are not on this machine and cannot be fetched from here."""


def timm_config(name: str) -> Any:
    """timm's configuration of a network, of the tag in its name or the default one.

    Raises BenchError as `check_network` does.
    """
    check_network(name)
    from timm.models import get_pretrained_cfg

    return get_pretrained_cfg(name, allow_unregistered=False)


def check_network(name: str) -> None:
    """Raises BenchError for a network that timm does not have, and for a tag that this network does not have."""
    import timm
    from timm.models import list_pretrained

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else " `bench list backbones` says where names are found."
        raise BenchError(f"timm {timm.__version__} has no network '{architecture}'.{hint}")
    tags = [known.partition(".")[2] for known in list_pretrained(architecture)] if tag else []
    if tag not in ("", *tags):
        known = f"It has {', '.join(tags)}" if tags else "It has none"
        raise BenchError(f"timm {timm.__version__} has no weights '{tag}' of {architecture}. {known}.")


def why_unreachable(tag: str) -> str:
    """Empty where the weights of a tag are cached or the hub answers for them within seconds, else the reason."""
    return "" if cached_file(tag) is not None else _ask_hub(tag)


def _hub_id(tag: str) -> str:
    architecture, _, name = tag.partition(".")
    if IMAGENET_TAGS.get(architecture) == name:
        return f"timm/{tag}"  # asking timm would import torch
    hub_id = timm_config(tag).hf_hub_id
    if not hub_id:
        raise BenchError(f"timm knows no downloadable weights '{tag}'. Give a file: --weights FILE.")
    return hub_id if "/" in hub_id else f"timm/{tag}"


def cached_file(tag: str) -> Path | None:
    """The file of a tag in the cache of the hub's client, None if it is not there."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(_hub_id(tag), "model.safetensors")
    return Path(cached) if isinstance(cached, str) else None


def imagenet_file(tag: str) -> Path:
    """The file of a timm tag, from the local cache or the hub. Raises UnreachableError, without waiting, if offline."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    if (cached := cached_file(tag)) is not None:
        return _sound_copy(cached)
    refuse_unreachable(tag)  # the hub's client would retry for most of a minute
    try:
        return _sound_copy(Path(hf_hub_download(_hub_id(tag), "model.safetensors")))
    except (OSError, RuntimeError, ValueError, HfHubHTTPError) as problem:
        raise _unreachable(tag, str(problem)) from problem


def refuse_unreachable(tag: str) -> None:
    """Raises UnreachableError where the hub does not answer for a tag that is not cached."""
    if why := _ask_hub(tag):
        raise _unreachable(tag, why)


def _unreachable(tag: str, why: str) -> UnreachableError:
    return UnreachableError(
        f"The ImageNet weights {tag} are not on this machine and cannot be fetched ({why}). Where there is a "
        f"network, take model.safetensors from {_hub_id(tag)} on the Hugging Face hub, copy it here and give its path "
        "(--weights PATH/model.safetensors); or train from random weights (--weights none)."
    )


def _ask_hub(tag: str) -> str:
    """Asks the hub for the head of the file, PATIENCE seconds at most; empty if it answers, else the reason."""
    from huggingface_hub import constants, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return _ask(hf_hub_url(_hub_id(tag), "model.safetensors"))


@functools.lru_cache(64)
def _ask(url: str) -> str:
    """Whether an address answers, asked once a process. In a thread, as looking a name up knows no time limit."""
    answer = [f"no answer within {PATIENCE:g} s"]

    def ask() -> None:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE):
                answer[0] = ""
        except (OSError, ValueError, http.client.HTTPException) as problem:
            answer[0] = str(getattr(problem, "reason", "") or problem)

    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    asker.join(PATIENCE + 0.5)
    return answer[0]


def _sound_copy(path: Path) -> Path:
    """A file of the hub's cache, which names files by their hash: a copy that was altered or cut short is refused."""
    named = path.resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", named) and sha256_of(path) != named:
        raise BenchError(
            f"The cached weights {path} are not what was downloaded: their SHA-256 is {sha256_of(path)}, not {named}. "
            f"Delete {path.resolve()} and download again, or give a file with --weights FILE."
        )
    return path


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, read again only where its size or time has changed."""
    status = path.stat()
    return _hash_of(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(64)
def _hash_of(path: Path, size: int, changed: int) -> str:
    """The hash of a file that has this size and time: a plan asks for it once a backbone, a run once a training."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
