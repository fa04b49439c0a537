"""Every class of the package grad-cam as a method: gradcam:ScoreCAM, gradcam:EigenCAM, gradcam:AblationCAM, …"""

import contextlib
import inspect
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytorch_grad_cam
import torch
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget, FinerWeightedTarget
from torch import Tensor, nn

from ..benchmark.core.errors import BenchError, did_you_mean
from ..benchmark.core.seeds import seed_for
from .base import Evidence, Options, register

COMPARED_CLASSES = 3  # FinerCAM's default: the classes with the nearest logits
# ScoreCAM holds every channel times the image in memory, 1.2 GB an image at 2048 channels; what RandomCAM draws for an
# image must not depend on the others of its batch.
ONE_BY_ONE = ("ScoreCAM", "RandomCAM")


@register(
    "gradcam:*",
    version=3,  # 2: RandomCAM drew by the whole batch
    family="grad-cam package",
    kind="score",
    needs=("checkpoint:classifier",),
    options={"package_class": ""},
    variant="package_class",
    uses_seed=True,
    citation="Gildenblat et al., PyTorch library for CAM methods, 2021",
)
def gradcam_package(evidence: Evidence, options: Options) -> Tensor:
    """Any explainer of the package grad-cam, at the last grid: `gradcam:EigenCAM`.

    Maps are the package's own before it scales and resizes them, rectified, on the grid where its class has a grid
    step; classes without one (FullGrad, SESS, RefineCAM) give the package's final map at image size. Its habits stay:
    the sign of EigenCAM is arbitrary, AblationCAM flips where the logit is negative, GradCAMPlusPlus adds a constant to
    its denominator (`gradcampp` does not). Model, modes and gradients are left as found. Raises BenchError for an
    unknown class.
    """
    kind = _package_class(options.package_class)
    parts = [slice(i, i + 1) for i in range(len(evidence.images))] if kind.__name__ in ONE_BY_ONE else [slice(None)]
    model: Any = evidence.explained
    maps = []
    with _untouched(model), torch.enable_grad():
        for part in parts:
            with _seeded(evidence, part):
                maps.append(_explain(kind, _GridView(model, evidence, part), _targets(kind, evidence, part)))
    return torch.from_numpy(np.ascontiguousarray(np.concatenate(maps))).to(evidence.images).float().relu()


def _check_options(options: Options) -> None:
    """Refuses an unknown class before anything trains."""
    _package_class(options.package_class)


setattr(gradcam_package, "check_options", _check_options)  # noqa: B010 - a function has no such attribute to type


def _package_class(name: str) -> Any:
    """A class of the package that explains a model at target layers."""
    classes = {n: c for n, c in vars(pytorch_grad_cam).items() if inspect.isclass(c) and hasattr(c, "forward")}
    known = {n: c for n, c in classes.items() if "target_layers" in inspect.signature(c).parameters}
    if name not in known:
        hint = did_you_mean(name, known) if name else f" Known: {', '.join(sorted(known))}."
        raise BenchError(f"The package grad-cam has no explainer '{name}'; write gradcam:CLASS.{hint}")
    return known[name]


class _GridView(nn.Module):
    """The model as the package wants it, with the last grid as a layer of its own.

    All hooks of the package, and the layer AblationCAM swaps, then concern this view and not the model.
    """

    def __init__(self, model: Any, evidence: Evidence, part: slice) -> None:
        super().__init__()
        self.model = model
        self.target = nn.Identity()
        self.images = evidence.images[part].detach()
        self._grid = evidence.activations[part].detach().float()

    def forward(self, images: Tensor) -> Tensor:
        if not isinstance(self.target, nn.Identity):  # AblationCAM's layer gives the grid itself
            return self.model.classify(self.target(images))
        # copies, as the package detaches what it read in place, which a view does not allow
        grid = (self._grid if images is self.images else self.model.features(images).float()).clone()
        if torch.is_grad_enabled() and not grid.requires_grad:
            grid.requires_grad_()
        return self.model.classify(self.target(grid))


class _GridMaps:
    """Mixed into a class of the package: returns its map on the grid instead of scaling and resizing it."""

    def compute_cam_per_layer(self: Any, input_tensor: Tensor, targets: list[Any], eigen_smooth: bool) -> Any:
        seen = self.activations_and_grads
        read = _to_numpy if self.detach else _as_it_is
        activations = read(seen.activations[0])
        gradients = read(seen.gradients[0]) if seen.gradients else None
        if isinstance(gradients, Tensor) and not gradients.requires_grad:
            # Behind a linear head the gradient is a constant, with no graph for ShapleyCAM's second derivative to
            # follow: that derivative is 0.
            gradients = gradients + 0 * activations
        return self.get_cam_image(input_tensor, self.target_layers[0], targets, activations, gradients, eigen_smooth)

    def aggregate_multi_layers(self, maps: Any) -> Any:
        return maps


def _explain(kind: Any, view: _GridView, targets: list[Any]) -> np.ndarray:
    """Runs one class of the package on the images of a view; its hooks are gone afterwards."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):  # its progress bars
        tool = _on_grid(kind)(view, [view.target], **_keywords(kind))
        try:
            maps = tool(view.images, targets)
        finally:
            for inner in (tool, getattr(tool, "base_cam", None), *getattr(tool, "base_cam_per_layer", [])):
                if (hooks := getattr(inner, "activations_and_grads", None)) is not None:
                    hooks.release()
    return _to_numpy(maps) if isinstance(maps, Tensor) else maps


def _on_grid(kind: Any) -> Any:
    direct = issubclass(kind, BaseCAM) and "compute_cam_per_layer" not in vars(kind)
    return type(f"Grid{kind.__name__}", (_GridMaps, kind), {}) if direct else kind


def _keywords(kind: Any) -> dict[str, Any]:
    """Arguments beside model and layers."""
    wanted = inspect.signature(kind).parameters
    if "ablation_layer" in wanted:  # its default is one object for all, which would keep the last activations alive
        return {"ablation_layer": pytorch_grad_cam.AblationLayer()}
    if kind is pytorch_grad_cam.FinerCAM:
        return {"base_method": _on_grid(pytorch_grad_cam.GradCAM)}
    return {}


def _targets(kind: Any, evidence: Evidence, part: slice) -> list[Any]:
    """What each image is asked: the logit of its class; for FinerCAM also against the classes nearest to it."""
    classes = evidence.classes[part].tolist()
    if kind is not pytorch_grad_cam.FinerCAM:
        return [ClassifierOutputTarget(c) for c in classes]
    logits = evidence.logits[part]
    gaps = (logits - logits.gather(1, evidence.classes[part][:, None])).abs()
    order = gaps.argsort(1).tolist()
    return [
        FinerWeightedTarget(c, [o for o in row if o != c][:COMPARED_CLASSES], 1.0)
        for c, row in zip(classes, order, strict=True)
    ]


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Puts back modes and parameter gradients, which the package changes."""
    modes = [(m, m.training) for m in model.modules()]
    gradients = [(p, p.grad) for p in model.parameters()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, gradient in gradients:
            parameter.grad = gradient


@contextlib.contextmanager
def _seeded(evidence: Evidence, part: slice) -> Iterator[None]:
    """RandomCAM draws from numpy's global state: seeded here by seed and images, put back afterwards."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed_for("gradcam", evidence.seed, *evidence.ids[part]) % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _to_numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor
