"""The page: well-formed, self-contained, the numbers of the tables, and hostile text stays text."""

import base64
import csv
import hashlib
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.results_store import Store
from wsolbench.reports.build import build_report
from wsolbench.reports.drawing import jobs
from wsolbench.reports.rows.load import collect
from wsolbench.reports.tables.aggregate import build_tables
from wsolbench.reports.tables.contents import Contents
from wsolbench.reports.tables.formats import label_values

FIGURES = {name: jobs.FIGURES[name] for name in ("qualitative", "curves", "selection")}  # test_figures tries them all
VOID = {"meta", "link", "img", "br", "input", "hr"}
HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


class Page(HTMLParser):
    """Elements, text of table cells, and whether every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.attributes, self.tables, self.text = [], [], [], [], []
        self.names = []  # ids of the tables
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, k, v) for k, v in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
            self.names.append(dict(attrs).get("id", ""))
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def built(results, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "FIGURES", FIGURES)
        return build_report(results, out), out


@pytest.fixture(scope="module")
def html(built):
    return (built[1] / "index.html").read_text(encoding="utf-8")


def test_everything_is_written(built):
    paths, out = built
    assert {p.name for p in paths if p.parent == out} == {
        "report.md",
        "report.tex",
        "rows.csv",
        "lines.csv",
        "index.html",
    }
    figures = [p for p in paths if p.parent == out / "figures"]
    assert len(figures) == 2 * 2 * (len(FIGURES) + 1)  # maps are two figures, malignant and benign
    assert all(p.stat().st_size > 1000 for p in paths)
    assert sorted(out.rglob("*.tmp")) == []
    named = re.findall(r"\]\((figures/[^)]+)\)", (out / "report.md").read_text())
    assert len(named) == 2 * (len(FIGURES) + 1)
    assert all((out / name).is_file() for name in named)


def test_page_is_well_formed_and_needs_no_network(html):
    page = Page(html)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "action", "srcset", "poster"):
            assert value.startswith(("data:", "#")), (tag, name, value[:80])
        assert not name.startswith("on")
    assert "@import" not in html
    assert "url(" not in html
    ids = [v for _, k, v in page.attributes if k == "id"]
    assert len(ids) == len(set(ids))
    targets = {v[1:] for t, k, v in page.attributes if t == "a" and k == "href"}
    assert targets <= set(ids)
    assert all(v for t, k, v in page.attributes if (t, k) == ("img", "alt") and v != "")


def test_only_our_script_may_run(html):
    script = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    assert len(script) == 1
    digest = base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html
    assert "default-src 'none'" in html


def test_page_holds_the_numbers_of_the_tables(html, found):
    tables = build_tables(found.rows, found.settings)
    page = Page(html)
    own = [t for name, t in zip(page.names, page.tables, strict=True) if re.fullmatch(r"table-\d+-table", name)]
    for table, grid in zip(tables, own, strict=True):
        lines = [[c.strip() for c in row] for row in grid if len(row) > 3][1:]
        assert lines == [
            [*label_values(line), *(line.cells[c.key].text for c in table.columns)] for line in table.lines
        ]
        assert "SYNTHETIC DATA" in table.caption
    words = " ".join(page.text)
    assert words.count("SYNTHETIC DATA") >= 2 * (1 + len(FIGURES))  # captions of tables and figures
    assert not re.search(r"\bnan\b", words, re.IGNORECASE)
    assert "n/a" in words
    for row in found.rows:
        assert row.stage in words


def test_sort_values_are_numbers_or_empty(html):
    for value in re.findall(r'<td class="num[^"]*" data-sort="([^"]*)"', html):
        assert value == "" or float(value) == float(value)


def test_hostile_text_is_shown_not_run(tmp_path, write_results, recipe, monkeypatch):
    monkeypatch.setattr(jobs, "FIGURES", {"curves": "PR"})
    change = {"dataset": HOSTILE, "notes": (HOSTILE,), "extra_methods": {HOSTILE: 2.0}}
    store = write_results(tmp_path / "r", recipe(seeds=(0,), protocols=("fair",), **change))
    store.fail("f" * 20, {"kind": "train", "labels": {"method": HOSTILE}, "error": HOSTILE, "traceback": ""})
    build_report(store, tmp_path / "out")
    page = Page((tmp_path / "out" / "index.html").read_text())
    kinds = [v for t, k, v in page.attributes if (t, k) == ("script", "type")]
    assert (page.tags.count("script"), kinds) == (2, ["application/json"])  # our own, and data that never run
    assert ("img", "src", "x") not in page.attributes
    assert HOSTILE in " ".join(page.text)
    assert any(HOSTILE in row for table in page.tables for row in table)
    assert "<script" not in (tmp_path / "out" / "report.md").read_text()
    assert all(p.parent.name in ("out", "figures") for p in (tmp_path / "out").rglob("*") if p.is_file())


def test_page_of_other_sets_holds_the_numbers_of_their_tables(wide, wide_found, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "FIGURES", {})
    monkeypatch.setattr(jobs, "OOD_FIGURES", {"ood": "In domain and out"})
    monkeypatch.setattr(jobs, "SHIFT_FIGURES", {})
    build_report(wide, tmp_path, ["html", "md", "tex", "csv"])
    page = Page((tmp_path / "index.html").read_text(encoding="utf-8"))
    found = dict(zip(page.names, page.tables, strict=True))
    contents = Contents(wide_found)
    assert [c.anchor for c in contents.chapters] == ["ood-1", "shifted-1", "published"]
    for chapter in contents.chapters[:2]:
        for number, part in enumerate(chapter.grids[0].parts(), 1):
            lines = [[c.strip() for c in row] for row in found[f"{chapter.anchor}-grid-{number}"] if len(row) > 4]
            heads, rows = lines[0], [row for row in lines[1:] if row[0] != "Method"]
            wanted = [[*x.names, *(c.text for c in x.cells)] for b in part.blocks for x in b.lines]
            assert [r for r in rows if r in wanted] == wanted, heads
    words = " ".join(page.text)
    assert "so none stand beside these" in words
    assert not re.search(r"\bnan\b", words, re.IGNORECASE)
    assert {v for t, k, v in page.attributes if (t, k) == ("a", "href")} >= {"#ood-1", "#shifted-1", "#published"}
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for title in (
        "## Out of domain",
        "### Out of domain, class by class",
        "## Shifted glas",
        "## Published beside ours",
    ):
        assert title in text
    labels = re.findall(r"\\label\{(.*?)\}", (tmp_path / "report.tex").read_text(encoding="utf-8"))
    assert len(labels) == len(set(labels)) > 6
    with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as handle:
        rows = {(row["stage"], row["gated"]): row for row in csv.DictReader(handle)}
    for row in wide_found.rows:
        line = rows[row.stage, str(row.gated)]
        assert (line["dataset"], line["shift"], line["level"]) == (row.dataset, row.shift, str(row.level))
        assert line["drop_pxap"] == ("" if math.isnan(row.drop_pxap) else repr(row.drop_pxap))
        assert [c["name"] for c in json.loads(line["by_class"])] == list(row.classes)


def test_failures_and_left_out_rows_are_told(tmp_path, small, monkeypatch):
    monkeypatch.setattr(jobs, "FIGURES", {})
    store = small
    store.fail("f" * 20, {"kind": "train", "labels": {"method": "negev"}, "error": "out of memory"})
    victim = next(r for r in collect(store).rows if r.method == "cam")
    (store.run_dir(victim.stage) / "scores.npz").unlink()
    build_report(store, tmp_path / "out", ["md"])
    text = (tmp_path / "out" / "report.md").read_text()
    assert "out of memory" in text
    assert victim.stage in text.partition("Not in these tables")[2]


def test_formats_and_errors(results, tmp_path):
    assert [p.name for p in build_report(results, tmp_path / "a", ["csv", "tex"])] == [
        "rows.csv",
        "lines.csv",
        "report.tex",
    ]
    assert not (tmp_path / "a" / "figures").exists()
    with pytest.raises(BenchError, match="Did you mean html"):
        build_report(results, tmp_path / "b", ["htm"])
    assert not (tmp_path / "b").exists()
    with pytest.raises(BenchError, match="bench run"):
        build_report(Store(tmp_path / "none"), tmp_path / "c")
    (tmp_path / "file").write_text("")
    with pytest.raises(BenchError, match="--out"):
        build_report(results, tmp_path / "file" / "report", ["csv"])


@pytest.fixture
def chromium():
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium or Chrome on this machine: sorting and filtering are not tried in a browser")
    return path


CLICKS = """
const table = document.querySelector("table.sortable"), block = table.tBodies[0];
const head = [...table.tHead.rows[0].cells].find((h) => h.textContent.trim() === "PxAP");
const names = () => [...block.rows].slice(1).map((r) => r.cells[0].textContent.trim()).join(",");
const log = [];
head.querySelector("button").click(); log.push(head.getAttribute("aria-sort") + ":" + names());
head.querySelector("button").click(); log.push(head.getAttribute("aria-sort") + ":" + names());
const box = document.querySelector(".filter input[value=loc]");
box.click(); log.push("hidden:" + [...table.tBodies].filter((b) => b.hidden).map((b) => b.dataset.block).join(","));
document.querySelector(".zoom").click(); log.push("open:" + document.getElementById("lightbox").open);
const classes = document.querySelector("table.grouped"), rows = classes.tHead.rows;
const last = [...rows[rows.length - 1].cells].at(-1);
last.querySelector("button").click();
const body = classes.tBodies[1];
log.push(last.textContent.trim() + ":" + [...body.rows].slice(1).map((r) => r.cells[r.cells.length - 1].dataset.sort));
document.title = "LOG " + log.join(" | ");
"""


def test_sorting_and_filtering_in_a_browser(chromium, html, found, tmp_path):
    policy = re.search(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", html)
    assert policy
    text = html.replace(policy[0], "").replace("</body>", f"<script>{CLICKS}</script></body>")
    (tmp_path / "page.html").write_text(text)
    flags = "headless no-sandbox disable-gpu no-first-run disable-background-networking disable-sync dump-dom"
    command = [chromium, *(f"--{flag}" for flag in flags.split()), "--disable-component-update"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "page.html").as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    title = re.search(r"<title>LOG (.*?)</title>", dom)
    assert title
    down, up, hidden, box, recalls = title[1].split(" | ")
    head, _, values = recalls.partition(":")
    numbers = [float(v) for v in values.split(",")]
    assert (head, numbers) == ("Accuracy", sorted(numbers, reverse=True))
    assert len(numbers) == len(build_tables(found.rows)[0].blocks[0].lines)
    lines = [x for x in build_tables(found.rows)[0].blocks[0].lines if x.cells["pxap"].value != "n/a"]
    order = [x.marked for x in sorted(lines, key=lambda x: x.cells["pxap"].number)]
    assert down == "descending:" + ",".join([*order[::-1], "classifier"])
    assert up == "ascending:" + ",".join([*order, "classifier"])  # undefined stays last
    assert hidden == "hidden:loc"
    assert box == "open:true"
