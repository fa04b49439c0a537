"""What a method takes over from its teacher: the form of the image head, and the weights of the trained model."""

import logging
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from ...benchmark.core.errors import BenchError
from .. import METHODS
from ..base import Options
from ..classifier import Classifier
from ..spec import MethodSpec, method_spec, parse_need

log = logging.getLogger(__name__)
HEAD_FORMS = {"gap": {"weight", "bias"}, "attention": {"hidden.weight", "score.weight", "linear.weight"}}


class Behind(NamedTuple):
    """The trained method behind a name, and its options, as far as the name itself tells."""

    spec: MethodSpec
    options: Options


def model_behind(name: str) -> Behind | None:
    """The trained method whose model makes the maps of `name`: itself, what an explainer reads, None for a baseline.

    Raises BenchError for an unknown name.
    """
    spec = method_spec(name)
    options = dict(spec.options)
    if spec.variant and name != spec.name:
        options[spec.variant] = name.partition(":")[2]
    if spec.trains:
        return Behind(spec, Options(**options))
    needs = [parse_need(need.format(**options)) for need in spec.needs]
    read = [need.method for need in needs if need.role == "checkpoint"]
    return model_behind(read[0]) if read else None


def image_head(options: Options) -> str:
    """The form of the image head that a student's options `head` and `teacher` ask for; `gap` after a baseline."""
    if options.head != "teacher":
        return options.head
    found = model_behind(options.teacher)
    if found is None:
        return "gap"
    if hasattr(found.options, "head"):
        return image_head(found.options)
    return getattr(METHODS.load(found.spec.name), "image_head", "gap")


def warm_start(method: Classifier, parent: Mapping[str, Tensor], *, head: bool) -> None:
    """Copies backbone and image head from a parent's state dict; whatever else the parent holds is left.

    head: whether the image head must come along. Without it, a head of another form starts at random. Raises
    BenchError if the parent has another backbone, or lacks the head that must come along.
    """
    own = {n: t for n, t in method.state_dict().items() if n.startswith(("backbone.", "head."))}
    fits = {n: t for n, t in parent.items() if n in own and own[n].shape == t.shape}
    missing = [n for n in own if n.startswith("backbone.") and n not in fits]
    if missing:
        raise BenchError(
            f"{method.registered_name}: the model it starts from does not have backbone '{method.backbone.name}': "
            f"{len(missing)} tensors are missing or of another shape, first {', '.join(missing[:3])}. "
            "Train both with the same backbone and stride."
        )
    theirs = {n for n in parent if n.startswith("head.")}
    same_head = theirs == {n for n in own if n.startswith("head.")} <= set(fits)
    if not same_head and head:
        raise BenchError(_other_head(method.registered_name, {n.removeprefix("head.") for n in theirs}))
    if not same_head:
        log.warning("%s: the parent has another image head; ours starts at random", method.registered_name)
        fits = {n: t for n, t in fits.items() if not n.startswith("head.")}
    method.load_state_dict(fits, strict=False)


def has_known_head(parent: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has an image head of one of our forms, which its students should not lose unnoticed."""
    names = {n.removeprefix("head.") for n in parent if n.startswith("head.")}
    return any(needed <= names for needed in HEAD_FORMS.values())


def _other_head(name: str, theirs: set[str]) -> str:
    form = next((f for f, needed in HEAD_FORMS.items() if needed <= theirs), "")
    if not form:
        return f"{name}: the model it starts from has no image head that could be taken over. Choose another teacher."
    advice = f"Set {name}.head={form}"
    if form == "attention":
        advice += f", and {name}.gated and {name}.width as for the teacher"
    return f"{name}: the model it starts from has an image head of the form '{form}' that does not fit ours. {advice}."
