"""What a method declares about itself, as literals in its `@register(...)`, readable without importing torch."""

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..benchmark.core.errors import BenchError, did_you_mean
from ..benchmark.core.registry import Entry
from . import METHODS

ABILITIES = ("grid", "pyramid", "tokens", "attention", "batchnorm")
SUPERVISIONS = ("none", "image", "partial", "pixel")  # the later, the stronger
MASKED = ("partial", "pixel")  # of these, what sees masks of training images
SAMPLINGS = ("shuffle", "class", "group")
ROLES = ("checkpoint", "init", "maps", "source")
CLASSES, SETS = ("true", "pred"), ("train", "target")  # of teacher maps


class Recipe(NamedTuple):
    """A recipe at one dataset and backbone: training settings, the method's own options, and where they are from."""

    train: dict[str, Any]
    options: dict[str, Any]
    source: str


class Need(NamedTuple):
    """A stage a method builds on. name: tells it from others of its role; the method's own where none is given.

    classes: of teacher maps the class they are of, an image's `true` label or the one that is predicted, `pred`. on:
    the images they are of, those of `train` or of the `target` of an adapter.
    """

    role: str
    method: str
    name: str
    classes: str = "true"
    on: str = "train"


def parse_need(text: str) -> Need:
    """`role:method` or `role@name:method`; a method's name may hold a colon itself.

    Behind a role may stand how its maps are made, as in `maps(pred):cam` or `maps(pred,target)@first:cam`. Raises
    BenchError for a word that says nothing of maps.
    """
    head, _, method = text.partition(":")
    role, _, name = head.partition("@")
    role, bracket, words = role.partition("(")
    classes, on = "true", "train"
    for word in (w.strip() for w in words.removesuffix(")").split(",") if bracket):
        if word in CLASSES:
            classes = word
        elif word in SETS:
            on = word
        else:
            raise BenchError(f"'{word}' in needs '{text}' is none of {', '.join((*CLASSES, *SETS))}.")
    return Need(role, method, name or method, classes, on)


def twins(needs: Iterable[Need]) -> str:
    """What is wrong with needs of which two of one role have one name, as the end of a sentence; or nothing."""
    counts = Counter((need.role, need.name) for need in needs)
    doubled = [place for place, count in counts.items() if count > 1]
    if not doubled:
        return ""
    role, name = doubled[0]
    return (
        f"needs two stages '{role}:{name}' that nothing tells apart. Name them in `needs`, as "
        f"'{role}@first:{name}' and '{role}@second:…'."
    )


@dataclass(frozen=True)
class MethodSpec:
    """The facts of a method. Harness and plan branch on these, never on a name.

    version: raised whenever the method's numbers change; part of the identity of its stages.
    family: the heading under which `bench list` shows it.
    kind: `score` (unbounded maps, scaled by the protocol), `prob` (in [0, 1], used as they are) or `none` (no maps).
    supervision: what training sees: `none`, `image` labels, `pixel` masks (an upper bound, marked in every table), or
        `partial`, the masks of as many images as its option `labelled` says (marked as well).
    backbone: abilities it needs of its backbone (ABILITIES); empty for a baseline that looks at the image alone.
    needs: stages it builds on, as `role:method` with the roles `checkpoint` (explain this model), `init` (start from
        its weights), `maps` (learn from its maps of the training set) and, for adapters, `source` (the model that is
        adapted). `maps(pred):cam` are maps of the predicted class, and `maps(pred,target):cam` those of the target of
        an adapter; `{option}` stands for an option's value. Several of one role are told apart by the method's name, or
        by a name of their own, as in `maps@first:cam`. A user names another model to explain or to adapt behind an @.
    class_specific: whether its map depends on the class asked for.
    options: its own settings and their defaults; the type of the default is the type of the setting.
    choices: allowed values of an option.
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
        found: dict[str, Any] = {}
        options: dict[str, Any] = {}
        for place in ("*", dataset, f"*/{backbone}", f"{dataset}/{backbone}"):
            settings = places.get(place, {})
            options.update(settings.get("options", {}))
            found.update({k: v for k, v in settings.items() if k != "options"})
        return Recipe({k: v for k, v in found.items() if k != "source"}, options, found.get("source", ""))

    def identity(self, options: dict[str, Any] | None = None) -> dict[str, Any]:
        """What of the method enters a stage key: name, version, options and, for a user's file, its content."""
        found = {"name": self.name, "version": self.version, "options": dict(options or self.options)}
        return {**found, "source": self.source_hash} if self.source_hash else found


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
        **entry.facts,
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
    return spec


def _check_need(text: str, spec: MethodSpec) -> None:
    """Raises BenchError for a need that says less or more than a role and a method, perhaps with a name."""
    what, (head, colon, method) = f"{spec.module}: method '{spec.name}'", text.partition(":")
    role, at, name = head.partition("@")
    if not colon or not method or (at and not name) or "@" in name:
        raise BenchError(
            f"{what} needs '{text}', which is not ROLE:METHOD or ROLE@NAME:METHOD, as in 'maps:layercam' or "
            "'maps@first:cam'."
        )
    same = [need for need in spec.needs if parse_need(need).role == role]
    if not spec.trains and len(same) > 1:
        raise BenchError(
            f"{what} is a function and needs {' and '.join(same)}: it reads one model. Write a class to use several."
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
