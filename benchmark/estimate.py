"""How long a plan will take, learnt from what was done before on this results folder."""

from collections.abc import Sequence

from .plan import Stage
from .store import Store


def estimate_seconds(stages: Sequence[Stage], store: Store) -> float | None:
    """Seconds for the stages, from the speed of stored stages of the same kind; None if there is none to learn from.

    Trainings are compared by images per second at the same backbone, size and stride, else by the median of all.
    """
    if not stages:
        return 0.0
    records = list(store.records().values())
    trained = [r for r in records if r["kind"] == "train" and r.get("images_per_second")]
    scored = [r["seconds"] for r in records if r["kind"] != "train" and r["seconds"] is not None]
    each = _median(scored) if scored else 0.0
    speeds: dict[tuple, list[float]] = {}
    for record in trained:
        speeds.setdefault(_place(record["identity"]), []).append(record["images_per_second"])
    total, every = 0.0, [r["images_per_second"] for r in trained]
    for stage in stages:
        if stage.kind != "train":
            total += each
            continue
        if not every:
            return None
        speed = _median(speeds.get(_place(stage.identity), every))
        total += stage.identity["data"]["images"] * stage.work["config"].epochs / speed
    return total or None


def _place(identity: dict) -> tuple:
    """What trainings of one speed have in common."""
    return (
        *(identity["train"].get(k) for k in ("image_size", "stride", "precision")),
        identity["backbone"].get("name"),
    )


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
