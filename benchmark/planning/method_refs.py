"""From what the user typed to methods with settled options: names, variants, files, and the needs between methods."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...methods import METHODS
from ...methods.needs import Need, parse_need, twins
from ...methods.spec import MethodSpec, method_spec
from ..core.errors import BenchError, did_you_mean
from .config import convert

log = logging.getLogger(__name__)
READS = ("checkpoint", "source")  # roles of the model that an explainer reads or an adapter adapts


@dataclass(frozen=True)
class MethodRef:
    """A method with its options settled. `label` is its name in tables: `pixelcam`, `pixelcam:deepmil`, …

    base: the method named behind an @, as in `layercam@deepmil`, whose model is explained or adapted; always set for an
    adapter, and None for an explainer of its usual model. round: of a method that learns in rounds 1, 2, …; else 0.
    """

    label: str
    spec: MethodSpec
    options: Mapping[str, Any]
    train: Mapping[str, Any]  # training settings for this method alone
    chosen: frozenset[str] = frozenset()  # options the user set
    base: "MethodRef | None" = None
    round: int = 0

    def __hash__(self) -> int:
        """By name: equal methods have it in common, and options may hold lists."""
        return hash((self.label, self.spec.name))

    def at(self, preset: str, dataset: str, backbone: str) -> "MethodRef":
        """With the options its recipe gives for a dataset and backbone, where the user set none; so is its base.

        Raises BenchError for a recipe with an option that does not exist.
        """
        name = self.spec.name.removesuffix(":*")
        wanted = self.spec.recipe(preset, dataset, backbone).options
        wanted = {_present_name(self.spec, name, k): v for k, v in wanted.items()}
        fresh = {k: _option(self.spec, name, k, v) for k, v in wanted.items() if k not in self.chosen}
        base = self.base and self.base.at(preset, dataset, backbone)
        if not fresh and base is self.base:
            return self
        options = {**self.options, **fresh}
        behind = f"@{base.label}" if base and "@" in self.label else ""
        return replace(self, label=_label(self.spec, options) + behind, options=options, base=base)

    @property
    def own_label(self) -> str:
        """Its label without the model it stands on: `layercam` of `layercam@deepmil`."""
        return self.label.partition("@")[0]

    @property
    def chain(self) -> "tuple[MethodRef, ...]":
        """Itself and what it stands on: the explainer, the adapter, the source of `layercam@shot@deepmil`."""
        return (self, *(self.base.chain if self.base else ()))

    @property
    def changed(self) -> str:
        """Options that differ from their defaults and do not show in the label, as text."""
        shown = {self.spec.variant}
        pairs = [f"{k}={v}" for k, v in self.options.items() if k not in shown and v != self.spec.options[k]]
        return ", ".join(pairs)

    def needs(self) -> list[Need]:
        """Needs of the method, options filled in. Raises BenchError where two of a role have one name."""
        needs = [parse_need(need.format(**self.options)) for need in self.spec.needs]
        if self.base is not None:
            needs = [need._replace(method=self.base.label) if need.role in READS else need for need in needs]
        if problem := twins(needs):
            raise BenchError(f"{self.label} {problem}")
        return needs

    def parents(self) -> dict[str, Need]:
        """Its needs by the names its stage knows them by: the role, or of several with one role `role:name`."""
        needs = self.needs()
        count = Counter(need.role for need in needs)
        return {need.role if count[need.role] == 1 else f"{need.role}:{need.name}": need for need in needs}

    def identity(self) -> dict[str, Any]:
        """Identity of the method in stage keys; of rounds the number of this one, not how many were asked for."""
        options = {k: list(v) if isinstance(v, tuple) else v for k, v in self.options.items() if k != self.spec.rounds}
        return self.spec.identity({**options, "round": self.round} if self.round else options)


class Resolver:
    """Turns names into MethodRefs, with the options of one request applied wherever a method occurs."""

    def __init__(self, overrides: Mapping[str, Mapping[str, Any]]) -> None:
        self._overrides = overrides
        self._used: set[str] = set()
        self._cache: dict[str, MethodRef] = {}

    def expand(self, names: Iterable[str]) -> list[MethodRef]:
        """The methods asked for; a path of a Python file stands for all methods it registers."""
        refs: list[MethodRef] = []
        for name in names:
            registered = METHODS.load_file(Path(name)) if is_file(name) else [name]
            refs += [r for r in (self.ref(n) for n in registered) if r not in refs]
        return refs

    def ref(self, name: str) -> MethodRef:
        """One method by name. Raises BenchError for an unknown name, option or value."""
        if name not in self._cache:
            self._cache[name] = self._resolve(name)
        return self._cache[name]

    def _resolve(self, name: str) -> MethodRef:
        head, at, behind = name.partition("@")
        ref = self._alone(head)
        usual = _usual_model(ref)
        if not at:
            return _on_model(ref, self.ref(usual), "") if ref.spec.adapts else ref
        if not behind:
            raise BenchError(f"'{name}' names no model behind the @; write for example {head}@deepmil.")
        if not usual:
            raise BenchError(_reads_none(ref, behind))
        model = self.ref(behind)
        if model.label == self.ref(usual).label:
            return self.ref(head)
        return _on_model(ref, model, f"@{model.label}")

    def adapts(self, ref: MethodRef, trail: tuple[str, ...] = ()) -> bool:
        """Whether a method, or one that it builds on, adapts to a target."""
        trail = (*trail, ref.label)
        behind = (self.ref(need.method) for need in ref.needs())
        return ref.spec.adapts or any(self.adapts(one, trail) for one in behind if one.label not in trail)

    def _alone(self, name: str) -> MethodRef:
        spec = method_spec(name)
        base, _, variant = name.partition(":")
        options, train = dict(spec.options), {}
        chosen: set[str] = set()
        sections = [s for s in (base, name) if s in self._overrides]
        for section in dict.fromkeys(sections):
            self._used.add(section)
            for key, value in self._overrides[section].items():
                if key.startswith("train."):
                    train[key.removeprefix("train.")] = value
                    continue
                own = _present_name(spec, base, key)
                if own != key and own in self._overrides[section]:
                    raise BenchError(f"{section}.{key} is the earlier name of {section}.{own}: set one of them.")
                options[own] = _option(spec, base, own, value)
                chosen.add(own)
        if variant and name != spec.name:
            if not spec.variant:
                raise BenchError(f"Method '{base}' has no variants, so '{name}' means nothing; write '{base}'.")
            options[spec.variant] = _option(spec, base, spec.variant, variant)
            chosen.add(spec.variant)
        return MethodRef(_label(spec, options), spec, options, train, frozenset(chosen))

    def check_sections(self, known: Iterable[str]) -> None:
        """Raises BenchError for a section of settings that belongs to nothing in this request."""
        allowed = self._used | set(known)
        for section in self._overrides:
            if section not in allowed:
                in_plan = allowed | {r.spec.name for r in self._cache.values()}
                raise BenchError(
                    f"The settings {section}.* belong to no method of this run.{did_you_mean(section, in_plan)}"
                )


def _usual_model(ref: MethodRef) -> str:
    """The name of the model that an explainer reads or an adapter adapts, empty where there is none."""
    needs = (parse_need(need.format(**ref.options)) for need in ref.spec.needs)
    return next((need.method for need in needs if need.role in READS), "")


def _on_model(ref: MethodRef, model: MethodRef, behind: str) -> MethodRef:
    """A method that explains or adapts this model. Raises BenchError where it trains none, or is itself adapted."""
    if not model.spec.trains:
        raise BenchError(f"{ref.label}@{model.label}: '{model.label}' trains no model that could be read.")
    spec = ref.spec
    if spec.adapts:
        if any(one.spec.adapts for one in model.chain):
            raise BenchError(
                f"{ref.label}@{model.label}: '{model.label}' is adapted already; adapt its source instead."
            )
        backbone = tuple(dict.fromkeys((*model.spec.backbone, *spec.backbone)))
        own = model.spec
        spec = replace(spec, kind=own.kind, class_specific=own.class_specific, selects=own.selects, backbone=backbone)
    return replace(ref, label=f"{ref.label}{behind}", spec=spec, base=model)


def _reads_none(ref: MethodRef, behind: str) -> str:
    """Message for an @ behind a method that neither explains nor adapts."""
    if ref.spec.trains:
        other = f" Its teacher stands behind a colon: {ref.own_label}:{behind}." if ref.spec.variant else ""
        return f"{ref.label}@{behind}: '{ref.label}' trains a model of its own, and neither explains nor adapts.{other}"
    return f"{ref.label}@{behind}: '{ref.label}' looks at the image alone and reads no model. Write {ref.label}."


def is_file(name: str) -> bool:
    """Whether a typed method is a path rather than a name."""
    return name.endswith(".py") or "/" in name or "\\" in name


def _present_name(spec: MethodSpec, base: str, key: str) -> str:
    """The name of an option that was given by an earlier one, with a warning; any other name as it is."""
    own = next((new for new, old in spec.renamed.items() if old == key), key)
    if own != key:
        log.warning("%s.%s is now called %s.%s; the earlier name still works.", base, key, base, own)
    return own


def _option(spec: MethodSpec, base: str, key: str, value: Any) -> Any:
    if key not in spec.options:
        raise BenchError(f"Method '{base}' has no option '{key}'.{did_you_mean(key, spec.options)}")
    value = convert(value, spec.options[key], f"{base}.{key}")
    allowed = spec.choices.get(key)
    if allowed and value not in allowed:
        raise BenchError(f"{base}.{key} = {value!r} is not one of {', '.join(map(str, allowed))}.")
    return value


def _label(spec: MethodSpec, options: Mapping[str, Any]) -> str:
    base = spec.name.removesuffix(":*")
    value = options.get(spec.variant) if spec.variant else None
    if value is None or value == spec.options.get(spec.variant):
        return base
    return f"{base}:{value if not isinstance(value, tuple) else '+'.join(map(str, value))}"
