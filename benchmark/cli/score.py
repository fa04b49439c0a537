"""`bench score`: anybody's maps against masks, without a model."""

import json
from pathlib import Path
from typing import Any

import click


@click.command()
@click.option(
    "--maps", required=True, type=click.Path(path_type=Path), help="Folder of score maps: npz, or 8/16-bit grey PNG."
)
@click.option(
    "--masks",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder of masks of the same names; > 0 is foreground.",
)
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
@click.option("--tau", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Threshold of Dice and IoU.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, nothing else.")
def score(
    maps: Path, masks: Path, labels: Path | None, kind: str, size: int | None, tau: float, as_json: bool
) -> None:  # fmt: skip
    """Score anybody's maps against masks, without a model.

    Maps and masks are matched by file stem; a mask may add _anno or _mask (train_1_anno.bmp for train_1.npz). An npz
    holds one array, or the map under `map`. PNG values are divided by 255 or 65535.

    PxAP, its chance level and Dice are those of `bench run`: pixels of all images pooled, 1,000 thresholds. Oracle
    numbers use the threshold that is best on these very masks and are no result.
    """
    from ..errors import plain
    from ..mapscore import ScoreRequest, score_folders
    from ..store import jsonable

    result = score_folders(ScoreRequest(maps, masks, labels, kind, size, tau))
    click.echo(json.dumps(jsonable(result), indent=1) if as_json else plain("\n".join(_table(result))))


def _table(result: dict[str, Any]) -> list[str]:
    size = f"{result['size']} x {result['size']} px" if result["size"] else "the masks' own size"
    lines = [f"{result['images']} images, maps of kind {result['kind']}, compared at {size}"]
    low, high = (_number(v) for v in result["interval"])
    lines += _row("PxAP", result["pxap"], f"chance {_number(result['chance'])}")
    lines += _row("", None, f"95% interval {low} to {high}, resampling {result['groups']} images or groups")
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
        f"median {_number(each['pxap_median'])}, {each['images']} images with foreground",
    )
    lines += _row("Dice", result["dice"], f"at tau {result['tau']:.3f}; mean per image {_number(each['dice_mean'])}")
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
        lines.append(f"{result['degenerate']} maps are constant: they rank no pixel of their image above another.")
    return lines


def _row(name: str, value: float | None, note: str) -> list[str]:
    shown = "" if value is None else _number(value)
    return [f"{name:<18}{shown:>8}  {note}".rstrip()]


def _pixels(name: str, part: dict[str, Any]) -> list[str]:
    return _row(name, part["pxap"], f"chance {_number(part['chance'])}, {part['images']} images")


def _number(value: float, digits: int = 2) -> str:
    return "n/a" if value != value else f"{value:.{digits}f}"
