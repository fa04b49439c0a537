"""Checkpoints: weights to keep, and snapshots that hold all a bit-exact resume needs. No pickle anywhere.

A snapshot is `resume/<epoch>.safetensors` (model, optimizer, scaler) and the weights of all candidate epochs, named
with their SHA-256 in `resume/state.json`, which is written last. The snapshot before it stays until the new
one is complete.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .errors import DamagedError
from .store import atomic_path, file_sha256, read_json, write_json

log = logging.getLogger(__name__)
STATES = ("state.json", "state.previous.json")


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Writes safetensors atomically and returns their SHA-256."""
    with atomic_path(path) as temporary:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary)
        return file_sha256(temporary)


def load_tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    """Reads safetensors of a known hash onto the CPU. Raises DamagedError if the file is missing or differs."""
    if not path.is_file():
        raise DamagedError(path, "is missing")
    if file_sha256(path) != sha256:
        raise DamagedError(path, "is damaged (its hash differs from its record)")
    try:
        return load_file(path)
    except SafetensorError as problem:
        raise DamagedError(path, f"is not a safetensors file ({problem})") from None


def copy_state(module: torch.nn.Module) -> dict[str, Tensor]:
    """The module's parameters and buffers, copied to the CPU; tied tensors are copied once each."""
    return {k: v.detach().to("cpu", copy=True).contiguous() for k, v in module.state_dict().items()}


@dataclass
class Progress:
    """What a training has reached: the epoch done, which epoch each role picked and why, and the weights of those."""

    epoch: int = -1
    roles: dict[str, dict[str, Any]] = field(default_factory=dict)  # role -> {"epoch", "value", "loss"}
    seconds: float = 0.0
    images: int = 0
    history_bytes: int = 0
    candidates: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)  # seconds by part of the stage, as far as they were saved

    def prune(self) -> None:
        """Forgets the weights of epochs that no role points at any more."""
        used = {r["epoch"] for r in self.roles.values()}
        self.candidates = {e: w for e, w in self.candidates.items() if e in used}


class Snapshots:
    """The snapshots of one training stage."""

    def __init__(self, folder: Path) -> None:
        self.run, self.folder = folder, folder / "resume"
        self._written: dict[int, str] = {}

    def weights_name(self, epoch: int) -> str:
        """File name of the weights of an epoch."""
        return f"epoch-{epoch:04d}.safetensors"

    def write_candidates(self, progress: Progress) -> dict[int, str]:
        """Writes the candidate weights that are not on disk yet; returns SHA-256 by epoch."""
        for epoch, weights in progress.candidates.items():
            if epoch not in self._written:
                self._written[epoch] = save_tensors(self.run / self.weights_name(epoch), weights)
        return {e: self._written[e] for e in progress.candidates}

    def save(self, progress: Progress, model: torch.nn.Module, optimizer: torch.optim.Optimizer, scaler: Any) -> None:
        """Writes a snapshot of the finished epoch."""
        candidates = self.write_candidates(progress)
        tensors, rest = _flatten_optimizer(optimizer.state_dict())
        name = f"{progress.epoch:04d}.safetensors"
        digest = save_tensors(
            self.folder / name, {**{f"model.{k}": v for k, v in copy_state(model).items()}, **tensors}
        )
        state = {
            "epoch": progress.epoch,
            "roles": progress.roles,
            "seconds": progress.seconds,
            "images": progress.images,
            "history_bytes": progress.history_bytes,
            "file": name,
            "sha256": digest,
            "optimizer": rest,
            "scaler": scaler.state_dict(),
            "candidates": {str(e): h for e, h in candidates.items()},
            "times": progress.times,
        }
        current = self.folder / STATES[0]
        if current.is_file():
            write_json(self.folder / STATES[1], read_json(current))
        write_json(current, state)
        self._clean()

    def _clean(self) -> None:
        """Removes what neither of the two latest snapshots needs."""
        states = [read_json(self.folder / n) for n in STATES if (self.folder / n).is_file()]
        keep = {s["file"] for s in states}
        epochs = {self.weights_name(int(e)) for s in states for e in s["candidates"]}
        for path in [*self.folder.glob("*.safetensors"), *self.run.glob("epoch-*.safetensors")]:
            if path.name not in keep | epochs:
                path.unlink()
        self._written = {e: h for e, h in self._written.items() if self.weights_name(e) in epochs}

    def load(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, scaler: Any) -> Progress:
        """Restores the newest intact snapshot; a damaged one is passed over with a warning. Empty if there is none."""
        for name in STATES:
            if not (self.folder / name).is_file():
                continue
            try:
                return self._restore(read_json(self.folder / name), model, optimizer, scaler)
            except DamagedError as problem:
                log.warning("snapshot %s is not used: %s", self.folder / name, problem)
        return Progress()

    def _restore(
        self, state: dict[str, Any], model: torch.nn.Module, optimizer: torch.optim.Optimizer, scaler: Any
    ) -> Progress:
        tensors = load_tensors(self.folder / state["file"], state["sha256"])
        hashes = {int(e): h for e, h in state["candidates"].items()}
        candidates = {e: load_tensors(self.run / self.weights_name(e), h) for e, h in hashes.items()}
        model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
        _load_optimizer(optimizer, _unflatten_optimizer(tensors, state["optimizer"]))
        scaler.load_state_dict(state["scaler"])
        self._written = hashes
        reached = {k: state[k] for k in ("epoch", "roles", "seconds", "images", "history_bytes")}
        return Progress(**reached, candidates=candidates, times=state.get("times", {}))

    def remove(self) -> None:
        """Deletes the snapshots and weights no role needs, once the training has its record."""
        for path in sorted(self.folder.glob("*")):
            path.unlink()
        if self.folder.is_dir():
            self.folder.rmdir()


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restores an optimizer, perhaps on another device: kernels are this device's choice, and so is the layout.

    Fused kernels walk over a parameter and its momentum in the order of memory, so that both need one layout.
    """
    for group, own in zip(state["param_groups"], optimizer.param_groups, strict=True):
        # before loading: torch decides by them where the number of steps is kept
        group.update({k: own[k] for k in ("fused", "foreach") if k in own})
    optimizer.load_state_dict(state)
    for parameter, entries in optimizer.state.items():
        for name, value in entries.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and name != "step":
                entries[name] = torch.empty_like(parameter).copy_(value)


def _flatten_optimizer(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors under flat names, and the rest as a JSON value."""
    tensors, plain = {}, {}
    for index, entries in state["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                plain[f"{index}.{name}"] = value
    return tensors, {"plain": plain, "groups": state["param_groups"]}


def _unflatten_optimizer(tensors: Mapping[str, Tensor], rest: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    for key, value in rest["plain"].items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": rest["groups"]}
