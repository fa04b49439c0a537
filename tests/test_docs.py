"""README, CONTRIBUTING and docs name only what is there: files, links, verbs, make targets."""

import re
from pathlib import Path

import pytest

from wsolbench.benchmark.cli import VERBS

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = "benchmark|methods|datasets|reports|tests|docs|results/published"
EXAMPLES = {"methods/mine.py", "datasets/mine.py", "reports/figures/mine.py", "benchmark/cli/mine.py"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_link_leads_somewhere(page):
    text = page.read_text(encoding="utf-8")
    targets = [t.partition("#")[0] for t in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in t]
    assert [t for t in targets if t and not (page.parent / t).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_path_is_there(page):
    named = set(re.findall(rf"(?<![\w/])((?:{FOLDERS})/[\w/.-]*\w(?:\.py|\.md|/))", page.read_text(encoding="utf-8")))
    assert sorted(n for n in named - EXAMPLES if not (ROOT / n).exists()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_verb_and_make_target_is_there(page):
    text = page.read_text(encoding="utf-8")
    code = "\n".join(a or b for a, b in re.findall(r"`([^`\n]+)`|^    (.+)$", text, re.MULTILINE))
    verbs = set(re.findall(r"(?:^|&& |\$ )bench ([a-z][a-z-]+)", code, re.MULTILINE))
    assert sorted(verbs - set(VERBS)) == []
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?:^|&& )make ([a-z][a-z-]+)", code, re.MULTILINE))
    assert sorted(t for t in targets if not re.search(rf"^{t}:", makefile, re.MULTILINE)) == []
