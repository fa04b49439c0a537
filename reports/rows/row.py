"""One row of the table per finished score, as a frozen value; undefined is NaN."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any

from ...benchmark.core.files import jsonable
from ..statistics.quality import NAN, ClassResult
from ..statistics.spreads import Clusters

NO_CLUSTERS = Clusters((), (), ())
USUAL = ("published", "declared")  # schemes of folds that no title needs to name


@dataclass(frozen=True)
class Row:
    """One checkpoint of one method on one evaluation set under one protocol.

    eval: full name of the evaluation set, made of `dataset` and, where its images were changed, `shift` and `level`
    (the unchanged set is no row of its own). severity: the value of that level on the scale that `axis` names; NaN
    where it has none, as target stains, whose order says nothing of how much they change. pixel_change: RMS difference
    of the shifted images from the images as they are, in grey levels 0 to 255; NaN where it was not measured.
    ood: whether the set differs from the one trained on, by data or by a shift.
    Quality is in percent, thresholds (`tau_*`) in [0, 1], times in seconds; what is undefined is NaN.

    scheme: how images are divided, e.g. `published` or `grouped` folds; rows of two schemes never share a table.
    protocol: with the versions it was scored by, where these are not the present ones.
    selection: `loc`, `cl`, `last`, or `-` for a baseline. map_class: class whose map is scored, `any` for maps that
    know no class, `-` for a method without maps. gated: nothing is foreground in images predicted as background.
    `*_low`, `*_high`: 95% interval over groups (patients, slides). `*_positives`: only images whose class has a region.
    `*_tau_val`: at the threshold chosen on `validation_masks` masks; `*_oracle`: at the threshold chosen on the scored
    images themselves, never a fair number. `*_image`: mean over groups of the mean over their images, each by itself.
    false_area: share of the pixels called foreground at tau_val in images whose class has no region, mean over groups.
    chance_dice: Dice of a constant map at its best; chance_image, chance_dice_image: the same image by image.
    end_low, end_high: share of pixels in the two end bins.
    ap: PxAP without bins, as a sample of `sample_pixels` pixels tells it: PxAP + (ap_sample - pxap_sample), the exact
    average precision of the sample and the PxAP of its bins.
    majority: accuracy of always saying the largest class. predicted_positive: share of images called positive.
    groups_effective: groups of equal size that say as much (Kish); groups_region: groups with foreground.
    folds: of a row of several folds pooled, these, and pooled_of their runs; empty for a run.
    seconds_train: of the training whose checkpoint is read; seconds_parents: of everything that training builds on.
    skill: PxAP above chance in percent of what chance leaves. drop_*: percentage points lost against the row of the
    same checkpoint on the set it was trained for (negative: gained); NaN in domain and without such a row.
    by_class: the images of each class alone. label_map: how the classes of another set were read, in words.
    micro_batch: images at once that a training fell back to when memory ran out, 0 if it did not; micro_batch_asked:
    those it was asked for, 0 for all. devices: processes or GPUs that trained one model.
    train_foreground: what a mask marks in the set trained on. unshifted: images that a shift could not change.
    normalisation: what images are normalised by. weights_seen: what of this set the starting weights have seen.
    unlike_published: in what the training differs from the published recipe and weights, a phrase each.
    target: the set whose training images, without labels, the model was adapted to; empty for others.
    settings: short hash of all that identifies the run but data, fold and seed; different ones are never averaged.
    """

    method: str
    options: str
    backbone: str
    train: str
    eval: str
    dataset: str
    shift: str
    level: int
    severity: float
    axis: str
    ood: bool
    fold: int | str
    scheme: str
    seed: int
    selection: str
    protocol: str
    map_class: str
    gated: bool
    kind: str
    family: str
    supervision: str
    synthetic: bool
    pxap: float
    pxap_low: float
    pxap_high: float
    chance: float
    ap: float
    ap_sample: float
    pxap_sample: float
    sample_pixels: int
    end_low: float
    end_high: float
    skill: float
    pxap_positives: float
    chance_positives: float
    pxap_image: float
    pxap_image_low: float
    pxap_image_high: float
    chance_image: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    balanced_accuracy: float
    majority: float
    predicted_positive: float
    tau_val: float
    dice_tau_val: float
    dice_tau_val_low: float
    dice_tau_val_high: float
    chance_dice: float
    dice_image: float
    dice_image_low: float
    dice_image_high: float
    chance_dice_image: float
    false_area: float
    iou_tau_val: float
    miou_tau_val: float
    dice_half: float
    tau_oracle: float
    dice_oracle: float
    iou_oracle: float
    miou_oracle: float
    images: int
    images_positive: int
    degenerate: int
    validation_masks: int
    groups: int
    groups_effective: float
    groups_region: int
    group: str
    epoch: int | None
    parameters: int
    seconds_train: float
    seconds_parents: float
    seconds_score: float
    stage: str
    stage_train: str
    stage_val: str
    weights_sha256: str
    settings: str
    foreground: str
    licence: str
    drop_pxap: float = NAN
    drop_skill: float = NAN
    drop_accuracy: float = NAN
    label_map: str = ""
    train_foreground: str = ""
    unshifted: int = 0
    pixel_change: float = NAN
    micro_batch: int = 0
    micro_batch_asked: int = 0
    devices: int = 1
    classes: tuple[str, ...] = ()
    by_class: tuple[ClassResult, ...] = ()
    notes: tuple[str, ...] = ()
    normalisation: str = ""
    weights_seen: tuple[str, ...] = ()
    versions: Mapping[str, Any] = field(default_factory=dict)
    folds: tuple[str, ...] = ()
    pooled_of: tuple[str, ...] = ()
    earlier: str = ""
    target: str = ""
    unlike_published: tuple[str, ...] = ()
    clusters: Clusters = field(default=NO_CLUSTERS, repr=False, compare=False)

    @property
    def baseline(self) -> bool:
        """Whether nothing was learned: no supervision at all."""
        return self.supervision == "none"

    @property
    def upper_bound(self) -> bool:
        """Whether training saw masks, of all images or of some."""
        return self.supervision in ("pixel", "partial")

    @property
    def run(self) -> str:
        """What names a run among all: its stage, and whether its maps are gated."""
        return f"{self.stage}-gated" if self.gated else self.stage

    @property
    def evidence(self) -> str:
        """The key of what figures need of it."""
        return "+".join(self.pooled_of) or self.run

    @property
    def pair(self) -> bool:
        """Whether the set is another data set than the one trained on, as it is (no shift)."""
        return self.ood and not self.shift

    def to_json(self) -> dict[str, Any]:
        """The row as a JSON value; NaN becomes None. What intervals are made of is left out."""
        return {f.name: json_value(getattr(self, f.name)) for f in fields(self) if f.name != "clusters"}


def json_value(value: Any) -> Any:
    """A field as JSON has it: tuples as lists, results of classes as mappings, undefined numbers as null."""
    if isinstance(value, tuple):
        value = [asdict(v) if is_dataclass(v) and not isinstance(v, type) else v for v in value]
    return jsonable(value)
