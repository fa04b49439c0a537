"""The rules of the house, read from the sources: the order of the rooms, circles, and sizes (rules in house.py)."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from wsolbench.benchmark.cli import VERBS

HERE = Path(__file__).parent
LIST = HERE / "house_breaches.json"
SPEC = importlib.util.spec_from_file_location("wsolbench_house", HERE / "house.py")
assert SPEC is not None
assert SPEC.loader is not None
house = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(house)
LIGHT = ("torch", "timm", "matplotlib", "pandas", "scipy", "joblib")


@pytest.mark.parametrize("rule", list(house.RULES))
def test_no_rule_is_broken_anew(rule):
    """The stored breaches are those of the day the rule was made; whoever mends one takes it off the list."""
    stored = json.loads(LIST.read_text(encoding="utf-8")).get(rule, []) if LIST.exists() else []
    now = house.RULES[rule]()
    assert sorted(set(now) - set(stored)) == []
    assert sorted(set(stored) - set(now)) == [], f"mended: take these off {LIST.name}"


def test_the_scan_sees_imports_of_every_kind():
    assert "benchmark.core.errors" in house.graph()["benchmark.core.registry"]
    assert "methods" in house.graph()["methods.base"]
    assert "benchmark.scoring.external_maps" in house.graph()["benchmark.cli.score"]  # inside a function
    assert "benchmark.scoring.external_maps" not in house.graph(lazy=False)["benchmark.cli.score"]
    assert len(house.sources()) > 150


def test_the_import_rule_says_what_it_should(monkeypatch):
    names = (
        "benchmark.core.x", "benchmark.planning.x", "benchmark.cli.x", "benchmark.conformance.x", "methods",
        "methods.x", "methods.base", "methods.spec", "methods.parts.x", "methods.backbones.x", "datasets.x",
        "reports.rows.x", "reports.page.x",
    )  # fmt: skip
    monkeypatch.setattr(house, "sources", lambda: dict.fromkeys(names, Path("x.py")))
    allowed = {(a, b) for a in names for b in names if house.sees(a, b)}
    for a, b in (
        ("methods.x", "methods.parts.x"), ("methods.parts.x", "methods.base"), ("methods.base", "methods.spec"),
        ("methods.parts.x", "methods.backbones.x"), ("benchmark.planning.x", "methods.spec"),
        ("reports.page.x", "reports.rows.x"), ("reports.rows.x", "benchmark.core.x"),
        ("benchmark.cli.x", "reports.page.x"), ("benchmark.conformance.x", "reports.rows.x"),
    ):  # fmt: skip
        assert (a, b) in allowed, (a, b)
    for a, b in (
        ("methods.parts.x", "methods.x"), ("methods.x", "datasets.x"), ("datasets.x", "methods.x"),
        ("methods.x", "benchmark.planning.x"), ("benchmark.core.x", "benchmark.planning.x"),
        ("reports.rows.x", "reports.page.x"), ("reports.rows.x", "benchmark.planning.x"), ("methods.base", "methods.x"),
        ("benchmark.planning.x", "reports.rows.x"), ("methods.backbones.x", "methods.base"),
    ):  # fmt: skip
        assert (a, b) not in allowed, (a, b)


def imported_by(modules: list[str]) -> str:
    """The heavy packages that are there once these modules are, in a fresh Python."""
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        f"print([m for m in {LIGHT!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    return done.stdout.strip() or done.stderr


def test_the_command_line_imports_nothing_heavy():
    modules = sorted({f"wsolbench.benchmark.cli.{target.partition(':')[0]}" for target, _ in VERBS.values()})
    missing = [m for m in modules if m.removeprefix("wsolbench.") not in house.sources()]
    assert not missing, f"verbs without a module: {missing}"
    assert imported_by(modules) == "[]"


def test_planning_imports_nothing_heavy():
    modules = [f"wsolbench.{m}" for m in house.sources() if m.startswith("benchmark.planning")]
    assert imported_by(modules) == "[]"


def test_packages_of_the_sources_are_installed():
    text = (house.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = set(re.findall(r'^  "wsolbench\.([\w.]+)",$', text, re.MULTILINE))
    assert listed == {m for m, p in house.sources().items() if p.name == "__init__.py"}
