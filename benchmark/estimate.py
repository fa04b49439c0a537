"""How long a plan will take, learnt from what was done before on this results folder."""

from collections.abc import Sequence

from .plan import Stage
from .store import Store


def estimate_seconds(stages: Sequence[Stage], store: Store) -> float | None:
    """Seconds for the stages, from the speed of stored stages of the same kind; None if there is none to learn from.

    Trainings are compared by images per second at the same backbone, size and stride, else by the median of all.
    """
    records = list(store.records().values())
    trained = [r for r in records if r["kind"] == "train" and r.get("images_per_second")]
    scored = [r["seconds"] for r in records if r["kind"] != "train"]
    total = 0.0
    for stage in stages:
        if stage.kind != "train":
            total += _median(scored) if scored else 0.0
            continue
        alike = [r for r in trained if _alike(r, stage)] or trained
        speeds = [r["images_per_second"] for r in alike]
        if not speeds:
            return None
        total += stage.identity["data"]["images"] * stage.work["config"].epochs / _median(speeds)
    return total if total or not stages else None


def _alike(record: dict, stage: Stage) -> bool:
    mine, its = stage.identity, record["identity"]
    same_size = all(mine["train"][k] == its["train"][k] for k in ("image_size", "stride", "precision"))
    return same_size and mine["backbone"].get("name") == its["backbone"].get("name")


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return ordered[len(ordered) // 2]
