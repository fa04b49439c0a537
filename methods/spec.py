"""What a method declares about itself, as literals in its `@register(...)`, readable without importing torch."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..benchmark.core.errors import BenchError, did_you_mean
from ..benchmark.core.registry import Entry
from . import METHODS
from .needs import ROLES, need_text, parse_need, placeholders, twins

ABILITIES = ("grid", "pyramid", "tokens", "attention", "batchnorm")
SUPERVISIONS = ("none", "image", "partial", "pixel")  # the later, the stronger
MASKED = ("partial", "pixel")  # of these, what sees masks of training images
SAMPLINGS = ("shuffle", "class", "group")


class Recipe(NamedTuple):
    """A recipe at one dataset and backbone: training settings, the method's own options, and where they are from."""

    train: dict[str, Any]
    options: dict[str, Any]
    source: str


@dataclass(frozen=True)
class MethodSpec:
    """The facts of a method. Harness and plan branch on these, never on a name.

    version: raised whenever the method's numbers change; part of the identity of its stages.
    family: the heading under which `bench list` shows it.
    kind: `score` (unbounded maps, scaled by the protocol), `prob` (in [0, 1], used as they are) or `none` (no maps).
    supervision: what training sees: `none`, `image` labels, `pixel` masks (an upper bound, marked in every table), or
        `partial`, the masks of as many images as its option `labelled` says (marked as well).
    backbone: abilities it needs of its backbone (ABILITIES); empty for a baseline that looks at the image alone.
    needs: stages it builds on, as `role:method` or Need("role", "method", …) with the roles `checkpoint` (explain this
        model), `init` (start from its weights), `maps` (learn from its maps of the training set) and, for adapters,
        `source` (the model that is adapted). `maps(pred):cam` are maps of the predicted class, and
        `maps(pred,target):cam` those of the target of an adapter; `{option}` stands for an option's value. Several of
        one role are told apart by the method's name, or by a name of their own, as in `maps@first:cam`. A user names
        another model to explain or to adapt behind an @.
    class_specific: whether its map depends on the class asked for.
    options: its own settings and their defaults; the type of the default is the type of the setting.
    choices: allowed values of an option.
    renamed: option -> its name in earlier versions, under which it still stands in stage keys and may be set.
    variant: the option that `name:value` sets, as in `pixelcam:deepmil`.
    recipes: preset -> place -> settings. A place is "*", a dataset, "*/BACKBONE" or DATASET/BACKBONE; the later of
        these wins. Settings are training settings and perhaps "options" (values of `options` for this place) and
        "source" (where the values are from, and which of them are our own choice).
    selects: explainers whose map quality picks a `loc` checkpoint while this classifier trains.
    uses_seed: whether an untrained method draws random numbers.
    views: independent augmentations of every training image, in `batch.views` where there are several.
    groups: whether training sees which images are of one patient or slide, in `batch.groups`.
    sampling: the order of an epoch: `shuffle` (every image once), or balanced by `class` or by `group`, so that each
        comes equally often in the epoch and in its batches. These three are no fields of the stage key: a method that
        starts to use one raises its version.
    adapts: whether it adapts a trained model to a target, another dataset of which it sees images without labels or
        masks. Its map is that of its source: kind, class_specific and selects are taken from there.
    rounds: of active learning the option that says how many, each a training of its own, which may start from the
        model of the one before; after each the method selects as many images as its option `acquire` says, whose masks
        the next one has, too. Goes with supervision `partial`.
    source_images: whether an adapter also trains on the labelled images of the source; without them it is source-free.
    citation, published: the paper, and its PxAP as {"dataset/backbone": value}.
    """

    name: str
    version: int = 1
    family: str = "other"
    kind: str = "score"
    supervision: str = "image"
    backbone: tuple[str, ...] = ("grid",)
    needs: tuple[str, ...] = ()
    class_specific: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    variant: str = ""
    recipes: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    selects: tuple[str, ...] = ()
    uses_seed: bool = False
    views: int = 1
    groups: bool = False
    sampling: str = "shuffle"
    adapts: bool = False
    source_images: bool = False
    rounds: str = ""
    citation: str = ""
    published: dict[str, float] = field(default_factory=dict)
    trains: bool = True
    summary: str = ""
    origin: str = "built-in"
    module: str = ""
    source_hash: str = ""

    def recipe(self, preset: str, dataset: str, backbone: str) -> Recipe:
        """The settings of a preset for a dataset and backbone, the more particular place winning."""
        places = self.recipes.get(preset, {})
        train: dict[str, Any] = {}
        options: dict[str, Any] = {}
        for place in ("*", dataset, f"*/{backbone}", f"{dataset}/{backbone}"):
            settings = places.get(place, {})
            options.update(settings.get("options", {}))
            train.update({k: v for k, v in settings.items() if k != "options"})
        return Recipe({k: v for k, v in train.items() if k != "source"}, options, train.get("source", ""))

    def identity(self, options: dict[str, Any] | None = None) -> dict[str, Any]:
        """What of the method enters a stage key: name, version, options and, for a user's file, its content."""
        options = {self.renamed.get(key, key): value for key, value in (options or self.options).items()}
        identity = {"name": self.name, "version": self.version, "options": options}
        return {**identity, "source": self.source_hash} if self.source_hash else identity


def method_spec(name: str) -> MethodSpec:
    """The spec of a registered name (`base:variant` allowed), without importing the method.

    Raises BenchError for an unknown name, an unknown fact, or a fact with a value outside its range.
    """
    return spec_from_entry(METHODS.entry(name))


def spec_from_entry(entry: Entry) -> MethodSpec:
    """Turns the decorator's keywords into a MethodSpec; raises BenchError where they make no sense."""
    known = {f.name for f in dataclasses.fields(MethodSpec)} - {
        "name",
        "summary",
        "origin",
        "module",
        "source_hash",
        "trains",
    }
    for fact in entry.facts:
        if fact not in known:
            raise BenchError(
                f"{entry.module}: @register('{entry.name}') has no fact '{fact}'.{did_you_mean(fact, known)}"
            )
    spec = MethodSpec(
        entry.name,
        **{**entry.facts, "needs": _needs_of(entry)},
        trains=entry.shape == "class",
        summary=entry.summary,
        origin=entry.origin,
        module=entry.module,
        source_hash=entry.source_hash,
    )
    for what, values, allowed in (
        ("kind", (spec.kind,), ("score", "prob", "none")),
        ("supervision", (spec.supervision,), SUPERVISIONS),
        ("backbone", spec.backbone, ABILITIES),
        ("needs", [parse_need(n).role for n in spec.needs], ROLES),
        ("sampling", (spec.sampling,), SAMPLINGS),
    ):
        for value in values:
            if value not in allowed:
                raise BenchError(
                    f"{entry.module}: {what} '{value}' of method '{entry.name}' is not one of {', '.join(allowed)}."
                )
    for need in spec.needs:
        _check_need(need, spec)
    if problem := twins(parse_need(n) for n in spec.needs):
        raise BenchError(f"{entry.module}: method '{entry.name}' {problem}")
    _check_loading(spec)
    _check_maps(spec)
    _check_adapter(spec)
    _check_partial(spec)
    _check_renamed(spec)
    return spec


def _needs_of(entry: Entry) -> tuple[str, ...]:
    """The needs of an entry as texts, whichever way they are written. Raises BenchError for a malformed one."""
    what, given = f"{entry.module}: method '{entry.name}'", entry.facts.get("needs", ())
    if isinstance(given, str) or not isinstance(given, tuple | list) or hasattr(given, "_fields"):
        raise BenchError(f'{what}: needs={given!r} must be a tuple of needs, as in needs=("maps:layercam",).')
    try:
        needs = tuple(need_text(need) for need in given)
        for need in needs:
            parse_need(need)
            for option in placeholders(need):
                if option not in (known := entry.facts.get("options", {})):
                    raise BenchError(f"needs '{need}', and there is no option '{option}'.{did_you_mean(option, known)}")
    except BenchError as problem:
        raise BenchError(f"{what} {problem}") from None
    return needs


def _check_need(text: str, spec: MethodSpec) -> None:
    """Raises BenchError where a function needs several models."""
    role = parse_need(text).role
    same = [need for need in spec.needs if parse_need(need).role == role]
    if not spec.trains and len(same) > 1:
        raise BenchError(
            f"{spec.module}: method '{spec.name}' is a function and needs {' and '.join(same)}: it reads one model. "
            "Write a class to use several."
        )


def _check_loading(spec: MethodSpec) -> None:
    """Raises BenchError for facts about training batches that make no sense."""
    what = f"{spec.module}: method '{spec.name}'"
    if type(spec.views) is not int or spec.views < 1:
        raise BenchError(f"{what}: views={spec.views!r} must be a whole number from 1 on.")
    if type(spec.groups) is not bool:
        raise BenchError(f"{what}: groups={spec.groups!r} must be True or False.")
    if not spec.trains and (spec.views, spec.groups, spec.sampling) != (1, False, "shuffle"):
        raise BenchError(f"{what} is a function and trains nothing: views, groups and sampling are for classes.")


def _check_maps(spec: MethodSpec) -> None:
    """Raises BenchError for needs of teacher maps that cannot be made."""
    what = f"{spec.module}: method '{spec.name}'"
    for text in spec.needs:
        need = parse_need(text)
        if need.role != "maps" and (need.classes, need.on) != ("true", "train"):
            raise BenchError(f"{what} needs '{text}': classes and images are for the role maps.")
        if need.on == "target" and not spec.adapts:
            raise BenchError(f"{what} needs '{text}': only a method declared adapts=True has a target.")
        if need.on == "target" and need.classes != "pred":
            raise BenchError(f"{what} needs '{text}': labels of a target are withheld; write maps(pred,target).")
        if need.role == "maps" and need.on == "train" and spec.adapts and not spec.source_images:
            raise BenchError(
                f"{what} needs '{text}' and is source-free; write maps(pred,target), or source_images=True."
            )


def _check_adapter(spec: MethodSpec) -> None:
    """Raises BenchError for facts about adaptation that make no sense."""
    what, sources = f"{spec.module}: method '{spec.name}'", [n for n in spec.needs if parse_need(n).role == "source"]
    if type(spec.adapts) is not bool or type(spec.source_images) is not bool:
        raise BenchError(f"{what}: adapts and source_images must be True or False.")
    if not spec.adapts:
        if sources or spec.source_images:
            fact = "source_images=True" if spec.source_images else f"needs '{sources[0]}'"
            raise BenchError(f"{what} is no adapter: {fact} goes with adapts=True.")
        return
    if not spec.trains:
        raise BenchError(f"{what} is a function and trains nothing: adapts=True is for classes.")
    if len(sources) != 1 or "{" in sources[0]:
        raise BenchError(
            f"{what} adapts a model: name the usual one in needs, as 'source:classifier', once and without an option; "
            f"{spec.name}@deepmil adapts another."
        )
    if spec.supervision in MASKED:
        raise BenchError(
            f"{what}: an adapter sees no masks; supervision='{spec.supervision}' is for methods of one dataset."
        )
    if not spec.source_images and (spec.groups or spec.sampling != "shuffle"):
        raise BenchError(
            f"{what} is source-free: images of a target have neither class nor group, so groups and sampling are for "
            "adapters with source_images=True."
        )


def _check_partial(spec: MethodSpec) -> None:
    """Raises BenchError for facts about masks of some images, and about rounds, that make no sense."""
    what = f"{spec.module}: method '{spec.name}'"
    if not isinstance(spec.rounds, str):
        raise BenchError(f"{what}: rounds={spec.rounds!r} must be the name of the option that says how many.")
    if spec.rounds and spec.supervision != "partial":
        raise BenchError(f"{what}: rounds acquire masks, so they go with supervision='partial'.")
    if spec.supervision == "partial" and not spec.trains:
        raise BenchError(f"{what} is a function and trains nothing: supervision='partial' is for classes.")
    needed = ("labelled", *(("acquire", spec.rounds) if spec.rounds else ())) if spec.supervision == "partial" else ()
    for option in needed:
        if type(spec.options.get(option)) is not int:
            raise BenchError(
                f"{what}: it needs the option '{option}', a whole number, as in options={{\"{option}\": 8}}: see "
                "*Masks of some images* in docs/methods.md."
            )


def _check_renamed(spec: MethodSpec) -> None:
    """Raises BenchError for earlier names of options that are none, or that two options share."""
    what = f"{spec.module}: method '{spec.name}'"
    for new, old in spec.renamed.items():
        if new not in spec.options:
            raise BenchError(f"{what}: renamed names the option '{new}', which it does not have.")
        if old in spec.options or list(spec.renamed.values()).count(old) > 1:
            raise BenchError(f"{what}: '{old}', the earlier name of the option '{new}', belongs to another option too.")
