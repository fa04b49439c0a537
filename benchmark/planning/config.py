"""Settings: frozen dataclasses, presets, TOML files and `--set`, checked before anything runs.

Every field is marked *identity* (it can change a number, so it enters the stage key) or *runtime* (it cannot). Later
sources win: defaults < preset < the method's recipe < file < command line.
"""

import dataclasses
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..core.errors import BenchError, did_you_mean

T = TypeVar("T")


def identity(default: Any, about: str) -> Any:
    """A field that can change a number."""
    return field(default=default, metadata={"identity": True, "help": about})


def runtime(default: Any, about: str) -> Any:
    """A field that cannot change a number beyond rounding (device, paths, how a batch is split)."""
    return field(default=default, metadata={"identity": False, "help": about})


@dataclass(frozen=True)
class TrainConfig:
    """Training settings. All sizes in px, all schedules in epochs."""

    image_size: int = identity(224, "side of the crop the network sees, and of whole images at evaluation")
    load_size: int = identity(256, "side to which training images are squashed before the random crop")
    stride: int = identity(
        0, "stride of the last grid; 0 = its own; strides are removed, not dilated as by timm's output_stride"
    )
    epochs: int = identity(30, "passes over the training images")
    batch_size: int = identity(32, "images per update; an epoch is cut into nearly equal batches")
    micro_batch: int = identity(0, "largest part of a batch at once (gradients add up, BatchNorm sees parts); 0 = all")
    optimizer: str = identity("sgd", "sgd or adamw")
    lr: float = identity(3e-3, "learning rate of the pretrained body")
    head_lr_scale: float = identity(10.0, "new layers learn this much faster")
    momentum: float = identity(0.9, "SGD momentum (Nesterov)")
    weight_decay: float = identity(1e-4, "weight decay")
    step_epochs: int = identity(250, "the rate is multiplied by gamma every so many epochs")
    gamma: float = identity(0.1, "factor of the step schedule")
    lr_floor: float = identity(1e-6, "the schedule never goes below")
    warmup_epochs: int = identity(0, "epochs of linear warm-up; training from random weights needs one")
    precision: str = identity("fp32", "fp32, bf16 or fp16 (autocast; scoring is always fp32)")
    normalisation: str = identity("weights", "mean and deviation of images: of the weights, or imagenet as in papers")
    flip: bool = identity(True, "random horizontal and vertical flips, each with probability 1/2")
    jitter: tuple[float, float, float, float] = identity((0.5, 0.5, 0.5, 0.05), "brightness, contrast, saturation, hue")

    def __post_init__(self) -> None:
        _one_of("train.optimizer", self.optimizer, ("sgd", "adamw"))
        _one_of("train.precision", self.precision, ("fp32", "bf16", "fp16"))
        _one_of("train.normalisation", self.normalisation, ("weights", "imagenet"))
        for name in ("image_size", "load_size", "epochs", "batch_size", "step_epochs"):
            if getattr(self, name) < 1:
                raise BenchError(f"train.{name} = {getattr(self, name)} must be at least 1.")
        for name in ("lr", "head_lr_scale", "gamma"):
            if not 0 < getattr(self, name) < math.inf:
                raise BenchError(f"train.{name} = {getattr(self, name)} must be a number above 0.")
        for name in ("momentum", "weight_decay", "lr_floor", "stride", "warmup_epochs", "micro_batch"):
            if not 0 <= getattr(self, name) < math.inf:
                raise BenchError(f"train.{name} = {getattr(self, name)} must be a number of at least 0.")
        if self.load_size < self.image_size:
            raise BenchError(f"train.load_size = {self.load_size} is below train.image_size = {self.image_size}.")
        if len(self.jitter) != 4 or not all(0 <= v < math.inf for v in self.jitter) or self.jitter[3] > 0.5:
            raise BenchError(f"train.jitter = {self.jitter} must be four values >= 0, the hue at most 0.5.")

    def lr_at(self, epoch: int) -> float:
        """The body's learning rate in epoch 1, 2, …"""
        rate = max(self.lr * self.gamma ** ((epoch - 1) // self.step_epochs), min(self.lr_floor, self.lr))
        return rate * min(1.0, epoch / (self.warmup_epochs + 1)) if self.warmup_epochs else rate


@dataclass(frozen=True)
class RunConfig:
    """Runtime settings: where and how the work is done; nothing here can change a number beyond rounding."""

    data_root: Path = runtime(Path("data"), "folder that holds the datasets")
    results: Path = runtime(Path("results"), "folder for everything that is stored")
    device: str = runtime("auto", "auto, cpu, cuda or cuda:N")
    jobs: int = runtime(0, "stages at a time; 0 = one here, all workers of a cluster")
    jobs_per_gpu: int = runtime(0, "stages that share a GPU; 0 = as --jobs asks, spread over the GPUs")
    devices: int = runtime(1, "GPUs (or CPU processes) that train one model together")
    backend: str = runtime("loky", "joblib backend that starts the stages: loky, dask or ray")
    scheduler: str = runtime("", "address (or scheduler file) of a running Dask or Ray cluster")
    score_batch: int = runtime(32, "images per scoring batch")
    snapshot_seconds: float = runtime(20.0, "time between checkpoints to resume from")
    deterministic: bool = runtime(False, "only deterministic algorithms (bitwise repeats on a GPU, slower)")
    compile: bool = runtime(False, "torch.compile the backbone in training: minutes at the start, for long trainings")

    def __post_init__(self) -> None:
        if self.devices < 1 or self.score_batch < 1 or not self.snapshot_seconds >= 0:
            raise BenchError("run.devices and run.score_batch must be at least 1, run.snapshot_seconds at least 0.")
        for name in ("jobs", "jobs_per_gpu"):
            if getattr(self, name) < 0:
                raise BenchError(f"run.{name} = {getattr(self, name)} must be at least 0 (0: as many as fit).")
        if self.scheduler and self.backend == "loky":
            raise BenchError("--scheduler is the address of a Dask or Ray cluster: add --backend dask or ray.")


PRESETS: dict[str, dict[str, Any]] = {
    "smoke": {"image_size": 96, "load_size": 108, "stride": 8, "epochs": 20, "batch_size": 16, "lr": 0.02,
              "step_epochs": 15, "head_lr_scale": 1.0, "warmup_epochs": 2, "jitter": (0.2, 0.2, 0.2, 0.02)},
    "quick": {"epochs": 40, "step_epochs": 25, "stride": 16, "lr": 3e-3},
    "paper": {"stride": 8, "epochs": 1000, "precision": "fp16", "normalisation": "imagenet"},
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """Request of a user, as typed; names are resolved by the plan.

    ood: what models are scored on beside their own test set, in the words of `eval_sets.read_targets`.
    selections: checkpoints to score, of protocols.SELECTIONS; empty: all that a method has.
    allow_leaks: kinds of leaks between splits (datasets/parts/leaks.py) that every table tells instead of a refusal.
    weights_seen: sets and splits that the starting weights have seen; rows on them are marked, no number changes.
    overrides: section -> settings from the file and `--set`; sections are `train`, `protocol`, or a method's name,
    whose settings may be its options or `train.KEY` for this method alone.
    """

    methods: tuple[str, ...]
    datasets: tuple[str, ...]
    backbones: tuple[str, ...] = ("resnet18",)
    weights: str = "imagenet"
    folds: tuple[str, ...] = ("0",)
    seeds: tuple[int, ...] = (0,)
    protocols: tuple[str, ...] = ("fair",)
    preset: str = "quick"
    ood: tuple[str, ...] = ("all",)
    selections: tuple[str, ...] = ()
    allow_leaks: tuple[str, ...] = ()
    weights_seen: tuple[str, ...] = ()
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    run: RunConfig = field(default_factory=RunConfig)


REQUEST_LISTS = (
    "methods", "datasets", "backbones", "folds", "seeds", "protocols", "ood", "selections", "allow_leaks",
    "weights_seen",
)  # fmt: skip


def train_config(preset: str, *layers: Mapping[str, Any]) -> TrainConfig:
    """The training settings of a preset with layers of changes on top. Raises BenchError for a bad key or value."""
    if preset not in PRESETS:
        raise BenchError(f"There is no preset '{preset}'.{did_you_mean(preset, PRESETS)}")
    config = update(TrainConfig(), PRESETS[preset], "train")
    for layer in layers:
        config = update(config, layer, "train")
    return config


def update(config: T, changes: Mapping[str, Any], section: str) -> T:
    """A dataclass with some fields changed; text is converted to the type of the field's present value."""
    known = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}  # pyright: ignore[reportArgumentType]
    for key in changes:
        if key not in known:
            raise BenchError(f"There is no setting {section}.{key}.{did_you_mean(key, known)}")
    converted = {k: convert(v, known[k], f"{section}.{k}") for k, v in changes.items()}
    return dataclasses.replace(config, **converted)  # pyright: ignore[reportType,reportArgumentType]


def convert(value: Any, like: Any, name: str) -> Any:
    """`value`, perhaps typed as text, in the type of `like`. Raises BenchError naming the setting."""
    wanted = type(like)
    try:
        if isinstance(like, bool):
            return _to_bool(value)
        if isinstance(like, int):
            if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
                raise ValueError
            return int(value)
        if isinstance(like, float):
            if isinstance(value, bool):
                raise ValueError
            return float(value)
        if isinstance(like, tuple):
            parts = value.split(",") if isinstance(value, str) else list(value)
            sample = like[0] if like else ""
            return tuple(convert(p.strip() if isinstance(p, str) else p, sample, name) for p in parts)
        if isinstance(like, Path):
            return Path(value)
        if isinstance(like, str) and isinstance(value, str):
            return value
        raise ValueError
    except (ValueError, TypeError):
        raise BenchError(f"{name} = {value!r} is not of type {wanted.__name__} (an example: {like!r}).") from None


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if str(value).lower() not in words:
        raise ValueError
    return words[str(value).lower()]


def parse_set(pairs: Iterable[str]) -> dict[str, dict[str, str]]:
    """`--set SECTION.KEY=VALUE` pairs by section. Raises BenchError for one without a section, a key or a value."""
    sections: dict[str, dict[str, str]] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot and section and key):
            raise BenchError(
                f"--set {pair} is not of the form SECTION.KEY=VALUE, for example train.epochs=5, pixelcam.teacher=cam, "
                "pixelcam.train.lr=1e-3 or protocol.size=112."
            )
        sections.setdefault(section, {})[key] = value.strip()
    return sections


def read_toml(path: Path) -> dict[str, Any]:
    """A configuration file: options at the top, tables as sections. Raises BenchError if unreadable."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise BenchError(f"The configuration {path} cannot be read: {problem.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise BenchError(f"The configuration {path} is not valid TOML: {problem}.") from None


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys: {"train": {"lr": 1}} -> {"train.lr": 1}."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def identity_fields(config: Any) -> dict[str, Any]:
    """The fields of a configuration that enter a stage key, as JSON values."""
    identity = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.metadata["identity"]}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in identity.items()}


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise BenchError(f"{name} = {value!r} is not one of {', '.join(allowed)}.{did_you_mean(value, allowed)}")
