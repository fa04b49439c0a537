"""Checkpoints: weights to keep, and snapshots that hold all a bit-exact resume needs. No pickle anywhere.

A snapshot is `resume/<epoch>.safetensors` (model and optimizer; in mid-epoch `<epoch>-<step>.safetensors`, together
with random number generators and the losses so far) and the weights of all candidate epochs, named with their
SHA-256 in `resume/state.json`, which is written last. The snapshot before it stays until the new one is complete.
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

from ..core.errors import DamagedError
from ..core.files import atomic_path, file_sha256, read_json, write_json

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
class EpochCursor:
    """How far an epoch has come: steps done, whether the method has heard of its end, seconds, and mean losses so far.

    sums: on the device; of several processes, the share of this one. unchecked: losses since the last finite check.
    """

    epoch: int
    step: int = 0
    ended: bool = False
    seconds: float = 0.0
    sums: dict[str, Tensor] = field(default_factory=dict)
    unchecked: list[dict[str, Tensor]] = field(default_factory=list)

    def add(self, losses: Mapping[str, Tensor], weight: float) -> None:
        """Counts a step; `weight` is its images as a part of the epoch's."""
        self.step += 1
        self.unchecked.append(dict(losses))
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0) + value * weight


@dataclass(frozen=True)
class TrainState:
    """All that changes while a model trains, beside the random numbers of torch itself. generator: the method's own."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scaler: Any
    generator: torch.Generator

    @property
    def device(self) -> torch.device:
        """Where it trains."""
        return self.generator.device


@dataclass
class Progress:
    """Progress of a training: epochs done, the checkpoint slots, and the weights of the epochs in them.

    cursor: where the epoch after it was left, if it had begun.
    """

    epoch: int = -1
    slots: dict[str, dict[str, Any]] = field(default_factory=dict)  # slot -> {"epoch", "value", "loss"}
    seconds: float = 0.0
    images: int = 0
    history_bytes: int = 0
    candidates: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)  # seconds by part of the stage, as far as they were saved
    cursor: EpochCursor | None = None

    def prune(self) -> None:
        """Drops the weights of epochs that are in no checkpoint slot any more."""
        used = {r["epoch"] for r in self.slots.values()}
        self.candidates = {e: w for e, w in self.candidates.items() if e in used}


class Snapshots:
    """The snapshots of one training stage. parts: what it trains on at once, as `micro_batch`; others are not used."""

    def __init__(self, folder: Path, parts: int = 0) -> None:
        self.run, self.folder, self.parts = folder, folder / "resume", parts
        self._written: dict[int, str] = {}
        self._resumed: dict[str, Any] = {}

    def weights_name(self, epoch: int) -> str:
        """File name of the weights of an epoch."""
        return f"epoch-{epoch:04d}.safetensors"

    def write_candidates(self, progress: Progress) -> dict[int, str]:
        """Writes the candidate weights that are not on disk yet; returns SHA-256 by epoch."""
        for epoch, weights in progress.candidates.items():
            if epoch not in self._written:
                self._written[epoch] = save_tensors(self.run / self.weights_name(epoch), weights)
        return {e: self._written[e] for e in progress.candidates}

    def save(self, progress: Progress, train_state: TrainState) -> None:
        """Writes a snapshot of the finished epoch, or of the one that is under way."""
        candidates = self.write_candidates(progress)
        tensors, rest = _flatten_optimizer(train_state.optimizer.state_dict())
        tensors |= {f"model.{k}": v for k, v in copy_state(train_state.model).items()}
        name, midway = f"{progress.epoch:04d}.safetensors", None
        if cursor := progress.cursor:
            name = f"{cursor.epoch:04d}-{cursor.step:06d}{'-ended' if cursor.ended else ''}.safetensors"
            tensors |= {f"sums.{k}": v for k, v in cursor.sums.items()} | _random_states(train_state)
            midway = {"epoch": cursor.epoch, "step": cursor.step, "ended": cursor.ended, "seconds": cursor.seconds}
            midway["losses"] = list(cursor.sums)  # their order
        state = {
            "epoch": progress.epoch,
            "roles": progress.slots,  # the earlier name, so that a training begun before goes on
            "seconds": progress.seconds,
            "images": progress.images,
            "history_bytes": progress.history_bytes,
            "file": name,
            "sha256": save_tensors(self.folder / name, tensors),
            "optimizer": rest,
            "scaler": train_state.scaler.state_dict(),
            "candidates": {str(e): h for e, h in candidates.items()},
            "times": progress.times,
            "midway": midway,
            "parts": self.parts,
        }
        current = self.folder / STATES[0]
        before = _readable(current)
        if before.get("file", name) != name:
            write_json(self.folder / STATES[1], before)
        write_json(current, state)
        self._clean()

    def _clean(self) -> None:
        """Removes what neither of the two latest snapshots needs."""
        states = [s for s in (_readable(self.folder / n) for n in STATES) if s]
        keep = {s["file"] for s in states}
        epochs = {self.weights_name(int(e)) for s in states for e in s["candidates"]}
        for path in [*self.folder.glob("*.safetensors"), *self.run.glob("epoch-*.safetensors")]:
            if path.name not in keep | epochs:
                path.unlink()
        self._written = {e: h for e, h in self._written.items() if self.weights_name(e) in epochs}

    def load(self, train_state: TrainState) -> Progress:
        """Restores the newest intact snapshot; a damaged one is passed over with a warning. Empty if there is none."""
        for name in STATES:
            if not (self.folder / name).is_file():
                continue
            try:
                return self._restore(self.folder / name, train_state)
            except DamagedError as problem:
                log.warning("snapshot %s is not used: %s", self.folder / name, problem)
        return Progress()

    def _restore(self, path: Path, train_state: TrainState) -> Progress:
        state = read_json(path)
        try:
            if state.get("parts", self.parts) != self.parts:
                return Progress()  # it was cut into other parts, before memory ran out
            file, digest = self.folder / state["file"], state["sha256"]
            hashes = {int(e): h for e, h in state["candidates"].items()}
            reached = {k: state[k] for k in ("epoch", "seconds", "images", "history_bytes")}
            reached["slots"] = state["roles"]
            names = (state.get("midway") or {}).pop("losses", [])
            cursor = EpochCursor(**state["midway"]) if state.get("midway") else None
        except (KeyError, TypeError, AttributeError, ValueError) as problem:
            raise DamagedError(path, f"is no state of a training ({type(problem).__name__}: {problem})") from None
        curve = self.run / "history.jsonl"
        if not curve.is_file() or curve.stat().st_size < reached["history_bytes"]:
            raise DamagedError(curve, "lacks epochs of the snapshot")
        tensors = load_tensors(file, digest)
        candidates = {e: load_tensors(self.run / self.weights_name(e), h) for e, h in hashes.items()}
        if cursor:
            cursor.sums.update({name: tensors[f"sums.{name}"].to(train_state.device) for name in names})
        self._fill(train_state, tensors, state)
        self._written, self._resumed = hashes, state
        return Progress(**reached, candidates=candidates, times=state.get("times", {}), cursor=cursor)

    def restore_again(self, train_state: TrainState) -> None:
        """Sets all to the snapshot that was loaded, and the random numbers to those of the middle of its epoch.

        Raises DamagedError if it changed since.
        """
        tensors = load_tensors(self.folder / self._resumed["file"], self._resumed["sha256"])
        self._fill(train_state, tensors, self._resumed)
        torch.set_rng_state(tensors["random.cpu"])
        train_state.generator.set_state(tensors["random.generator"])
        if train_state.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"], train_state.device)

    def _fill(self, train_state: TrainState, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        train_state.model.load_state_dict(weights)
        _load_optimizer(train_state.optimizer, _unflatten_optimizer(tensors, state["optimizer"]))
        train_state.scaler.load_state_dict(state["scaler"])

    def remove(self) -> None:
        """Deletes the snapshots and weights no slot needs, once the training has its record."""
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


def _readable(path: Path) -> dict[str, Any]:
    """A state file, empty if it is missing or damaged."""
    try:
        state = read_json(path) if path.is_file() else {}
    except DamagedError:
        return {}
    return state if isinstance(state, dict) and {"file", "candidates"} <= set(state) else {}


def _random_states(train_state: TrainState) -> dict[str, Tensor]:
    """The random number generators that a step may draw from, as bytes."""
    states = {"random.cpu": torch.get_rng_state(), "random.generator": train_state.generator.get_state()}
    if train_state.device.type == "cuda":
        states["random.cuda"] = torch.cuda.get_rng_state(train_state.device)
    return states


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
