"""Stage keys of a dry run over every method, both data sets, their shifts and two protocols, held against a list.

A key is the address of what users have computed: a change of structure must not move one. Files enter by their names,
so that the list holds whatever library writes them. A new method adds lines, and nothing else may change any:
`python tests/test_stage_keys.py` writes the list anew.
"""

import hashlib
import sys
from pathlib import Path

import pytest

from wsolbench.methods import METHODS

LIST = Path(__file__).with_name("stage_keys.txt")
PACKAGE_CLASSES = ("gradcam:ScoreCAM", "gradcam:FullGrad")  # two of those behind the wildcard
VARIANTS = ("pixelcam:deepmil", "negev:cam", "fcam:deepmil")


def name_hash(path: Path) -> str:
    """In place of the hash of a file's content."""
    return hashlib.sha256("/".join(path.parts[-2:]).encode()).hexdigest()


def planned_stages(folder: Path, patch: pytest.MonkeyPatch) -> list[str]:
    """A line a stage: key, kind, training set, evaluation set, method."""
    from wsolbench.benchmark.planning.config import Request, RunConfig
    from wsolbench.benchmark.planning.planner import Planner
    from wsolbench.datasets import open as opening
    from wsolbench.datasets.synthesis.synthetic import WRITERS

    patch.setattr(opening, "file_sha256", name_hash)
    WRITERS["glas"](folder, 20, 8, 64)
    WRITERS["camelyon16"](folder, 20, 8, 64)
    names = [e.name for e in METHODS.entries() if e.origin == "built-in" and not e.name.endswith(":*")]
    request = Request(
        (*names, *PACKAGE_CLASSES, *VARIANTS), ("glas", "camelyon16"), weights="none", seeds=(0, 1),
        protocols=("fair", "paper"), preset="smoke", run=RunConfig(results=folder / "results", data_root=folder),
    )  # fmt: skip
    plan = Planner(request).build()
    lines = []
    for stage in plan.stages.values():
        labels = stage.labels
        where = f"{labels['train']} {labels.get('eval', '-').replace(' ', '_')} {labels['method']}"
        lines.append(f"{stage.key} {stage.kind} {where} {labels['seed']}")
    return sorted(lines, key=lambda line: (line.split()[1:], line))


def test_stage_keys_stay_as_they_are(tmp_path, monkeypatch):
    planned = planned_stages(tmp_path, monkeypatch)
    stored = LIST.read_text(encoding="utf-8").splitlines()
    gone, new = sorted(set(stored) - set(planned)), sorted(set(planned) - set(stored))
    assert not gone, f"{len(gone)} stage keys changed, first {gone[0]}"
    known = {line.split()[4] for line in stored}
    assert [line for line in new if line.split()[4] in known] == []
    assert not new, f"new methods: write the list anew with `python {Path(__file__).name}`"


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patcher:
        LIST.write_text("\n".join(planned_stages(Path(place), patcher)) + "\n", encoding="utf-8")
    sys.stdout.write(f"{LIST}\n")
