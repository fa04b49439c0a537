"""`bench score`: anybody's maps against masks, without a model."""

import json
from pathlib import Path
from typing import Any

import click

from ..core.errors import many
from ..core.protocols import MASK_REDUCTIONS
from . import options


@click.command()
@click.option(
    "--maps", required=True, type=click.Path(path_type=Path),
    help="Folder of score maps, folders inside included: npz, npy, float TIFF, or 8/16-bit grey PNG or TIFF.",
)  # fmt: skip
@click.option("--masks", type=click.Path(path_type=Path), help="Folder of masks of the same names.")
@click.option("--dataset", default="", help="Instead of --masks: the images of a dataset, by its name or CSV manifest.")
@click.option("--fold", default="", help="Fold of --dataset.  [default: its first]")
@click.option("--split", type=click.Choice(["test", "val", "train"]), help="Split of --dataset.  [default: test]")
@options.DATA_ROOT
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="CSV id,label[,prediction][,group]; scores only the images it lists.",
)
@click.option(
    "--kind", type=click.Choice(["prob", "score"]), default="prob", show_default=True,
    help="prob: values in [0, 1] as they are. score: unbounded, min-max per image.",
)  # fmt: skip
@click.option("--size", type=click.IntRange(1, 16384), help="Compare at N x N px instead of at each mask's own size.")
@click.option(
    "--mask-reduction", "reduction", type=click.Choice(MASK_REDUCTIONS),
    help="How masks get to --size; nearest-opencv is that of the published evaluation.  [default: nearest]",
)  # fmt: skip
@click.option(
    "--mask-foreground", default="", help="Mask values that are foreground: 255 or 1-3,7.  [default: above 0]"
)
@click.option("--mask-ignore", default="", help="Mask values of pixels that count nowhere: 255.")
@click.option("--mask-threshold", default="", help="Of soft masks: values above it are foreground.")
@click.option("--tau", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Threshold of Dice and IoU.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, nothing else.")
def score(
    mask_foreground: str, mask_ignore: str, mask_threshold: str, as_json: bool, **typed: Any
) -> None:  # fmt: skip
    """Score anybody's maps against masks, without a model.

    Maps and masks are matched by name, endings aside, or by their path where a name is there twice; a mask may add
    _anno or _mask (train_1_anno.bmp for train_1.npz, or for train_1.jpg.npy). An npz holds one array, or the map under
    `map`. Grey levels are divided by 255 or 65535. With --dataset the masks, classes and groups are those of the
    dataset, and an image of a background class needs no mask.

    PxAP, its chance level and Dice are those of `bench run`: pixels of all images pooled, 1,000 thresholds. Oracle
    numbers use the threshold that is best on these very masks and are no result. Whatever could be read in two ways
    is refused, or told below the numbers.
    """
    from ...datasets.masks.reader import make_rule
    from ..core.errors import plain
    from ..core.files import jsonable
    from ..scoring.external_maps import ScoreRequest, score_folders

    rule = make_rule(mask_foreground, mask_ignore, mask_threshold, "bench score")
    result = score_folders(ScoreRequest(**{k: v for k, v in typed.items() if v is not None}, rule=rule))
    click.echo(json.dumps(jsonable(result), indent=1) if as_json else plain("\n".join(_table(result))))


def _table(result: dict[str, Any]) -> list[str]:
    size = "the masks' own size"
    if result["size"]:
        size = f"{result['size']} x {result['size']} px (mask_reduction {result['reduction']})"
    lines = [f"{many(result['images'], 'image')}, maps of kind {result['kind']}, compared at {size}"]
    lines += _row("PxAP", result["pxap"], f"chance {_number(result['chance'])}")
    lines += _row("", None, _interval(result))
    low, high = result["end_bins"]
    lines += _row("", None, f"pixels in the end bins: {_number(low)}% below 0.001, {_number(high)}% from 0.999 on")
    if not result["positives"]["images"]:
        lines.append("No mask has a foreground pixel: PxAP, Dice and IoU are undefined.")
    elif result["positives"]["images"] < result["images"]:
        lines += _pixels("  positives only", result["positives"])
    for name, part in result.get("classes", {}).items():
        lines += _pixels(f"  class {name}", part)
    each = result["per_image"]
    lines += _row(
        "  mean per image",
        each["pxap_mean"],
        f"median {_number(each['pxap_median'])}, {many(each['images'], 'image')} with foreground",
    )
    at = f"at tau {result['tau']:.3f}; a constant map reaches {_number(result['chance_dice'])}"
    lines += _row("Dice", result["dice"], f"{at}; mean per image {_number(each['dice_mean'])}")
    lines += _row("IoU", result["iou"], f"at tau {result['tau']:.3f}")
    lines += _row(
        "Dice (oracle)",
        result["dice_oracle"],
        f"at tau {_number(result['tau_oracle'], 3)}, chosen on these masks by mean IoU",
    )
    lines += _row("IoU (oracle)", result["iou_oracle"], "at the same tau")
    if "accuracy" in result:
        lines += _row("Accuracy", result["accuracy"], "")
    if result["degenerate"]:
        verb = "map is" if result["degenerate"] == 1 else "maps are"
        lines.append(f"{result['degenerate']} {verb} constant: no pixel of the image is ranked above another.")
    return [*lines, *(f"note: {note.removeprefix('! ')}" for note in result["notes"])]


def _interval(result: dict[str, Any]) -> str:
    """The interval of PxAP, or why there is none."""
    from ..core.intervals import MIN_GROUPS

    low, high = result["interval"]
    groups = f"{result['groups']} images or groups ({_number(result['groups_effective'], 1)} effective)"
    if low != low:
        return (
            f"95% interval n/a: {groups}; at least {MIN_GROUPS} with foreground, and of different quality, are needed"
        )
    return f"95% interval {_number(low)} to {_number(high)} over {groups}"


def _row(name: str, value: float | None, note: str) -> list[str]:
    shown = "" if value is None else _number(value)
    return [f"{name:<18}{shown:>8}  {note}".rstrip()]


def _pixels(name: str, part: dict[str, Any]) -> list[str]:
    return _row(name, part["pxap"], f"chance {_number(part['chance'])}, {many(part['images'], 'image')}")


def _number(value: float, digits: int = 2) -> str:
    return "n/a" if value != value else f"{value:.{digits}f}"
