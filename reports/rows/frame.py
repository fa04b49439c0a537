"""The rows as a pandas data frame: one line a scored run. `rows.csv`, the tables and users' own scripts read it.

Columns, their units and what they say: `COLUMNS` (as a page: docs/columns.md).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

from .row import Row

if TYPE_CHECKING:
    import pandas as pd

_RUN = {
    "method": ("", "name in the registry"),
    "options": ("", "options that differ from the method's defaults; the target of an adapter"),
    "backbone": ("", "name of the network; - for a baseline"),
    "train": ("", "data set trained on"),
    "eval": ("", "evaluation set: data set, or data set:shift-level"),
    "dataset": ("", "data set of the evaluation set"),
    "shift": ("", "how its images were changed; empty for images as they are"),
    "level": ("", "level of the shift, 0 for none"),
    "severity": ("see axis", "value of that level; empty where levels have no order"),
    "axis": ("", "what severity is a number of"),
    "ood": ("", "whether the evaluation set differs from the one trained on, by data or by a shift"),
    "fold": ("", "fold of the split"),
    "scheme": ("", "how images are divided: published, declared or grouped folds"),
    "seed": ("", "random seed"),
    "selection": ("", "checkpoint: loc, cl or last; - for a baseline"),
    "protocol": ("", "fair or paper, with the versions it was scored by where they are not the present ones"),
    "map_class": ("", "class whose map is scored; any for maps that know no class, - without maps"),
    "gated": ("", "whether images predicted as background have no foreground"),
    "kind": ("", "kind of map: score (scaled by the protocol) or prob (in [0, 1])"),
    "family": ("", "family of the method"),
    "supervision": ("", "none, image, partial or pixel labels in training"),
    "synthetic": ("", "whether the images are made up"),
}
_QUALITY = {
    "pxap": ("%", "pixel average precision, pixels of all images pooled"),
    "pxap_low": ("%", "lower end of its 95% interval over groups"),
    "pxap_high": ("%", "upper end"),
    "chance": ("%", "PxAP of a constant map: the share of foreground"),
    "ap": ("%", "PxAP without bins: pxap + (ap_sample - pxap_sample)"),
    "ap_sample": ("%", "exact average precision of a sample of pixels"),
    "pxap_sample": ("%", "PxAP of the bins of that sample"),
    "sample_pixels": ("pixels", "size of the sample"),
    "end_low": ("%", "share of pixels in the lowest bin"),
    "end_high": ("%", "share of pixels in the highest bin"),
    "skill": ("%", "PxAP above chance, in percent of what chance leaves"),
    "pxap_positives": ("%", "PxAP of the images whose class has a region"),
    "chance_positives": ("%", "chance of those images"),
    "pxap_image": ("%", "mean over groups of the mean over their images of each image's PxAP"),
    "pxap_image_low": ("%", "lower end of its 95% interval over groups"),
    "pxap_image_high": ("%", "upper end"),
    "chance_image": ("%", "its value for a constant map"),
    "accuracy": ("%", "images classified right"),
    "accuracy_low": ("%", "lower end of its 95% interval over groups"),
    "accuracy_high": ("%", "upper end"),
    "balanced_accuracy": ("%", "mean of the recalls of the classes"),
    "majority": ("%", "accuracy of always saying the largest class"),
    "predicted_positive": ("%", "images predicted as positive"),
    "tau_val": ("[0, 1]", "threshold of best mean IoU on the validation masks"),
    "dice_tau_val": ("%", "Dice of the foreground at tau_val, pixels pooled"),
    "dice_tau_val_low": ("%", "lower end of its 95% interval over groups"),
    "dice_tau_val_high": ("%", "upper end"),
    "chance_dice": ("%", "Dice of a constant map at its best"),
    "dice_image": ("%", "mean over groups of the mean over their images of each image's Dice at tau_val"),
    "dice_image_low": ("%", "lower end of its 95% interval over groups"),
    "dice_image_high": ("%", "upper end"),
    "chance_dice_image": ("%", "its value for a constant map at its best"),
    "false_area": ("%", "pixels called foreground at tau_val in images of classes without a region, mean over groups"),
    "iou_tau_val": ("%", "IoU of the foreground at tau_val, pixels pooled"),
    "miou_tau_val": ("%", "mean IoU of foreground and background at tau_val"),
    "dice_half": ("%", "Dice at the threshold 0.5"),
    "tau_oracle": ("[0, 1]", "threshold of best mean IoU on the scored masks: never fair"),
    "dice_oracle": ("%", "Dice at tau_oracle: never fair"),
    "iou_oracle": ("%", "IoU at tau_oracle: never fair"),
    "miou_oracle": ("%", "mean IoU at tau_oracle: never fair"),
}
_COUNTS = {
    "images": ("images", "scored images"),
    "images_positive": ("images", "those whose class has a region"),
    "degenerate": ("images", "those whose map is constant"),
    "validation_masks": ("masks", "masks that tau_val was chosen on"),
    "groups": ("groups", "patients or slides"),
    "groups_effective": ("groups", "groups of equal size that say as much (Kish)"),
    "groups_region": ("groups", "those with foreground"),
    "group": ("", "what a group is: patient or slide"),
    "epoch": ("epoch", "epoch of the checkpoint; empty where nothing was trained"),
    "parameters": ("", "parameters of the scored model"),
    "seconds_train": ("s", "training whose checkpoint is scored"),
    "seconds_parents": ("s", "all that training builds on"),
    "seconds_score": ("s", "scoring of the test set"),
}
_TRACE = {
    "stage": ("", "key of the score stage: its folder in runs/"),
    "stage_train": ("", "key of the training; empty for a baseline"),
    "stage_val": ("", "key of the score of the validation images"),
    "weights_sha256": ("", "hash of the scored weights"),
    "settings": ("", "short hash of all that identifies the run but data, fold and seed"),
    "foreground": ("", "what a mask of the evaluation set marks"),
    "licence": ("", "licence of the evaluation set"),
    "drop_pxap": ("points", "PxAP lost against the same checkpoint on the set trained on; negative: gained"),
    "drop_skill": ("points", "the same of skill"),
    "drop_accuracy": ("points", "the same of accuracy"),
    "label_map": ("", "how classes of another set were read"),
    "train_foreground": ("", "what a mask of the set trained on marks"),
    "unshifted": ("images", "images that a shift could not change"),
    "pixel_change": ("grey levels", "RMS difference of the shifted images from the images as they are, 0 to 255"),
    "micro_batch": ("images", "images at once that training fell back to when memory ran out; 0 if it did not"),
    "micro_batch_asked": ("images", "images at once that were asked for; 0 for whole batches"),
    "devices": ("", "processes or GPUs that trained one model"),
    "classes": ("list", "names of the classes"),
    "by_class": ("list", "results of the images of each class"),
    "notes": ("list", "what to know of the split"),
    "normalisation": ("", "what images are normalised by, per channel"),
    "weights_seen": ("list", "what of this set the starting weights have seen, as declared"),
    "versions": ("mapping", "versions of method, data set, protocol and harness"),
    "folds": ("list", "folds of a row of several folds pooled; empty for a run"),
    "pooled_of": ("list", "its runs"),
    "earlier": ("", "what a row of an earlier version was scored by; empty for the present one"),
    "target": ("", "set an adapter saw unlabelled training images of"),
    "unlike_published": ("list", "in what the training differs from the published recipe and weights"),
}
COLUMNS: dict[str, tuple[str, str]] = {**_RUN, **_QUALITY, **_COUNTS, **_TRACE}
"""Column -> its unit (empty: text, a name or a plain count) and what it says. Undefined is missing."""

_NAMES = tuple(f.name for f in fields(Row) if f.name != "clusters")


def rows_frame(rows: Iterable[Row], columns: Sequence[str] = _NAMES) -> "pd.DataFrame":
    """One line a row in the order given, with the columns of `COLUMNS` or some of them; undefined numbers are NaN.

    The index counts the rows from 0. Lists and mappings (`classes`, `by_class`, `versions`, ...) are kept as objects.
    Raises AttributeError for a column that a row does not have.
    """
    import pandas as pd

    rows = list(rows)
    frame = pd.DataFrame({name: [getattr(row, name) for row in rows] for name in columns})
    return frame.astype({"epoch": "Int64"}) if "epoch" in columns else frame  # a whole number even where one is missing


def alike(rows: Sequence[Row], by: Sequence[str]) -> Iterator[tuple[tuple[Any, ...], list[Row]]]:
    """Rows that agree in the columns `by`: these values and the rows, groups and rows in the order given."""
    for place, part in rows_frame(rows, by).groupby(list(by), sort=False, dropna=False):
        yield cast("tuple[Any, ...]", place), [rows[k] for k in part.index]  # a list of columns gives tuples
