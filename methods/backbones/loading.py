"""Loading starting weights into a backbone, and the check beforehand that they fit."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...benchmark.core.errors import BenchError
from ...benchmark.core.files import read_json, write_json
from .adapter import Backbone, create_backbone
from .weights import imagenet_tag, read_state, weights_file, weights_identity
from .weights_hub import cached_file, refuse_unreachable, sha256_of

REBUILT = ("num_batches_tracked", "relative_position_index", "relative_coords_table", "attn_mask")
PREFIXES = ("backbone.net.", "module.", "model.", "backbone.", "encoder.", "net.")


def load_weights(backbone: Backbone, weights: str, pins: Path | None = None) -> dict[str, Any]:
    """Loads starting weights into a backbone, in place, and returns what was loaded, to be recorded.

    Half precision becomes float32, heads in the file are ignored. The result holds `source`, and for files `sha256`,
    `tensors` (number loaded) and `ignored` (names). pins: file that keeps the hash of ImageNet weights, so that two
    files never stand behind one tag. Raises BenchError if the weights cannot be had, do not fit, are not finite, or
    are not those of the pins.
    """
    if weights == "none":
        return {"source": "none"}
    path = weights_file(weights, backbone.name)
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
    body = create_backbone(backbone, stride, device="meta")
    if weights == "imagenet" and not fetch and cached_file(imagenet_tag(backbone)) is None:
        refuse_unreachable(imagenet_tag(backbone))
    elif weights != "none":
        path = weights_file(weights, backbone)
        _check_pins(weights, backbone, path, pins, add=False)
        _fit(body, read_state(path, shapes_only=True), path)
        _check_finite(path)


def _check_pins(weights: str, backbone: str, path: Path, pins: Path | None, add: bool) -> None:
    """Holds the file of an ImageNet tag against the one this results folder was begun with; the first one is kept."""
    if weights != "imagenet" or pins is None:
        return
    tag, digest = imagenet_tag(backbone), sha256_of(path)
    known = read_json(pins) if pins.is_file() else {}
    if known.get(tag, digest) != digest:
        raise BenchError(
            f"The ImageNet weights {tag} ({path}) have the SHA-256 {digest}, and rows in this results folder were made "
            f"from {known[tag]} ({pins}). The file was changed upstream or here; rows of both must not stand "
            "in one table. Put the earlier file back, or give another folder with --results."
        )
    if add and tag not in known:
        write_json(pins, {**known, tag: digest})


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


def _full(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _fit(backbone: Backbone, state: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], list[str]]:
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


def _rename(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Takes off a prefix some training codes put before every name, and finds a final norm stored as a head's."""
    best = max(("", *PREFIXES), key=lambda p: sum(n.removeprefix(p) in wanted for n in state if n.startswith(p)))
    state = {n.removeprefix(best): t for n, t in state.items() if n.startswith(best)}
    if "norm.weight" in wanted and "norm.weight" not in state:
        state = {("norm." + n.removeprefix("fc_norm.") if n.startswith("fc_norm.") else n): t for n, t in state.items()}
    return state


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
