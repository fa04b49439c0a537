"""What a student takes over from its teacher: the image head, built as the teacher builds its own, and the weights."""

import logging
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...benchmark.core.errors import BenchError
from .. import METHODS
from ..base import Method, Options, is_explainable
from ..needs import parse_need
from ..spec import MethodSpec, method_spec
from .heads import make_head

log = logging.getLogger(__name__)
OF_STUDENTS = ("teacher", "head")  # options that say whose head it is, not what it is like
PROBE = 4  # side of the grid on which the head of a parent and its copy are compared


class TeacherModel(NamedTuple):
    """The trained method behind a name, and its options, as far as the name itself tells."""

    spec: MethodSpec
    options: Options


def teacher_model(name: str) -> TeacherModel | None:
    """The trained method whose model makes the maps of `name`: itself, what an explainer reads, None for a baseline.

    Raises BenchError for an unknown name.
    """
    spec = method_spec(name)
    options = dict(spec.options)
    if spec.variant and name != spec.name:
        options[spec.variant] = name.partition(":")[2]
    if spec.trains:
        return TeacherModel(spec, Options(**options))
    needs = [parse_need(need.format(**options)) for need in spec.needs]
    read = [need.method for need in needs if need.role == "checkpoint"]
    return teacher_model(read[0]) if read else None


def student_head(options: Options, depth: int, num_classes: int) -> nn.Module:
    """The image head that a student's options `head` and `teacher` ask for, on a grid of `depth` channels.

    head=teacher: what the `build_head` of the teacher's model makes, from its options and those of the student that
    have the same name; global average pooling after a baseline, and after a model without `build_head`.
    """
    shape = {k: v for k, v in vars(options).items() if k in ("width", "gated")}
    if options.head != "teacher":
        return make_head(options.head, depth, num_classes, **shape)
    teacher = teacher_model(options.teacher)
    build = getattr(METHODS.load(teacher.spec.name), "build_head", None) if teacher else None
    if teacher is None or build is None:
        return make_head("gap", depth, num_classes)
    theirs = vars(teacher.options)
    shared = {k: v for k, v in vars(options).items() if k in theirs and k not in OF_STUDENTS}
    return build(depth, num_classes, Options(**{**theirs, **shared}))


def warm_start(student: Method, parent: Method, *, head: bool) -> None:
    """Copies backbone and image head from a parent model; whatever else the parent has is left.

    head: whether the image head must come along. Without it, a head of another form starts at random. Raises
    BenchError if the parent has another backbone, lacks the head that must come along, or classifies otherwise with
    the weights it gave.
    """
    own = student.state_dict()
    theirs = {n: t for n, t in parent.state_dict().items() if n.startswith(("backbone.", "head."))}
    missing = [n for n in own if n.startswith("backbone.") and not _fits(theirs, own, n)]
    if missing:
        raise BenchError(
            f"{student.registered_name}: the model it starts from does not have the backbone '{_network(student)}': "
            f"{len(missing)} tensors are missing or of another shape, first {', '.join(missing[:3])}. "
            "Train both with the same backbone and stride."
        )
    names = {n for n in own if n.startswith("head.")}
    same = names == {n for n in theirs if n.startswith("head.")} and all(_fits(theirs, own, n) for n in names)
    if not same and head:
        raise BenchError(_other_head(student, parent))
    if not same:
        log.warning("%s: the parent has another image head; ours starts at random", student.registered_name)
    kept = {n: t for n, t in theirs.items() if n in own and (same or n.startswith("backbone."))}
    student.load_state_dict(kept, strict=False)
    if same and head:
        _check_same_logits(student, parent)


def has_head(parent: Method) -> bool:
    """Whether a parent model builds its image head in a way that its students can, and so should not lose unnoticed."""
    return hasattr(parent, "build_head") and isinstance(getattr(parent, "head", None), nn.Module)


def _fits(theirs: dict[str, Tensor], own: dict[str, Tensor], name: str) -> bool:
    return name in theirs and theirs[name].shape == own[name].shape


def _network(method: Method) -> str:
    return getattr(getattr(method, "backbone", None), "name", "?")


def _check_same_logits(student: Method, parent: Method) -> None:
    """Raises BenchError where the same weights give other logits: the heads differ in an option that has no weights."""
    one: object = student
    other: object = parent
    if not (is_explainable(one) and is_explainable(other)):
        return
    like, training = next(student.parameters()), student.training
    generator = torch.Generator().manual_seed(0)
    grid = torch.randn(2, one.backbone.dims[-1], PROBE, PROBE, generator=generator).to(like.device, like.dtype)
    with torch.no_grad():
        student.eval()
        ours, theirs = one.classify(grid), other.classify(grid)
        student.train(training)
    if not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5):
        name, teacher = student.registered_name, parent.registered_name
        raise BenchError(
            f"{name}: with the weights of '{teacher}' its image head gives other logits than '{teacher}' does. An "
            f"option of the head was changed that {name} does not have: leave it at its default, or change the teacher."
        )


def _other_head(student: Method, parent: Method) -> str:
    name, theirs = student.registered_name, getattr(parent, "head", None)
    if not isinstance(theirs, nn.Module):
        return f"{name}: the model it starts from has no image head that could be taken over. Choose another teacher."
    form, shape = getattr(theirs, "form", ""), getattr(theirs, "shaped_by", ())
    if not form:
        return (
            f"{name}: the model it starts from has the image head of '{parent.registered_name}', which does not fit "
            f"ours. Set {name}.teacher to a method that reads '{parent.registered_name}'."
        )
    advice = f"Set {name}.head={form}"
    if shape:
        advice += f", and {' and '.join(f'{name}.{option}' for option in shape)} as for the teacher"
    return f"{name}: the model it starts from has an image head of the form '{form}' that does not fit ours. {advice}."
