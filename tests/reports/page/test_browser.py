"""The gallery in a real browser: what the slider, the filters and the keys do, with numpy as the judge."""

import base64
import json
import re

import numpy as np
import pytest
from matplotlib import colormaps

from wsolbench.benchmark.core.files import read_npz
from wsolbench.benchmark.core.metrics import THRESHOLDS, Histograms, dice_rows
from wsolbench.reports import build
from wsolbench.reports.drawing import jobs
from wsolbench.reports.figures.qualitative import outline
from wsolbench.reports.rows.load import collect
from wsolbench.reports.tables.aggregate import tables_of

HIT, FALSE_ALARM = (0, 114, 178), (213, 94, 0)
HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
SIZE, EDGES = 48, np.append(THRESHOLDS, 2.0)


class Truth:
    """What numpy says of the cards: a results folder, its lines, and every map and mask by name."""

    def __init__(self, store, found) -> None:
        self.store, self.tables, self.records = store, tables_of(found.rows, found.settings), found.records

    def lines(self, train="glas", evaluated="glas", protocol="fair"):
        """The lines shown first: those of the protocol's own checkpoint, as the table has them."""
        wanted = (train, evaluated, protocol)
        table = next(t for t in self.tables if (t.train, t.eval, t.protocol) == wanted)
        return [line for line in table.shown if line.first.kind != "none"]

    def examples(self, line):
        """Ids, maps as float64 and masks of a line."""
        found = read_npz(self.store.run_dir(line.first.stage) / "examples.npz")
        stem = self.records[line.first.stage]["facts"]["examples"]
        masks = read_npz(self.store.root / "examples" / f"{stem}.npz")["masks"].astype(bool)
        return found["ids"].tolist(), found["maps"].astype(float), masks

    def dice(self, line, tau: float) -> dict[str, float]:
        """Dice in percent of every image by its id; NaN without a region."""
        ids, maps, masks = self.examples(line)
        counts = [
            np.stack([np.histogram(m[where], EDGES)[0] for m, where in zip(maps, some, strict=True)])
            for some in (masks, ~masks)
        ]
        return dict(zip(ids, dice_rows(Histograms(*counts), tau).tolist(), strict=True))


@pytest.fixture(scope="module")
def report(tmp_path_factory, write_results, recipe, other_set):
    """What is true of a page without figures, and its address."""
    folder = tmp_path_factory.mktemp("page")
    make = recipe(size=SIZE, images=8, seeds=(0,), targets=(other_set,), extra_methods={HOSTILE: 2.0})
    store = write_results(folder / "r", make)
    found = collect(store)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "FIGURES", {})
        patch.setattr(build, "collect", lambda _: found)  # to read a folder once is enough
        build.build_report(store, folder / "out", ["html"])
    return Truth(store, found), (folder / "out" / "index.html").as_uri()


@pytest.fixture
def truth(report):
    return report[0]


@pytest.fixture
def page(browser, report):
    """The page opened afresh, its gallery in sight; whatever a test does, the page must neither complain nor ask."""
    show(browser, report[1])
    yield browser
    assert browser.complaints() == []


def show(browser, address: str, **size) -> None:
    browser.open(address, **size)
    browser.js("document.documentElement.style.scrollBehavior = 'auto'")
    browser.js("document.getElementById('gallery-cards').scrollIntoView()")
    ready(browser)


def ready(browser, count: int = 3) -> list[dict[str, str]]:
    """What the cards say, as soon as the first ones are unpacked and drawn."""
    browser.wait(f"({CARDS}).slice(0, {count}).every((c) => !c.dice.includes('…'))")
    browser.settle()
    return browser.js(CARDS)


def choose(browser, name: str, value: str) -> list[dict[str, str]]:
    """A filter set as by hand."""
    browser.js(
        f"""(() => {{ const s = document.querySelector("[data-filter={name}]"); s.value = {json.dumps(value)};
        if (s.value !== {json.dumps(value)}) throw new Error("no such option");
        s.dispatchEvent(new Event("change")); }})()"""
    )
    return ready(browser)


def methods_but(browser, *names: str) -> list[dict[str, str]]:
    """Only some methods are left."""
    browser.js('document.getElementById("gallery-none").click()')
    for name in names:
        browser.js(
            f"""[...document.querySelectorAll("#gallery-methods label")]
            .find((l) => l.textContent.trim() === {json.dumps(name)}).querySelector("input").click()"""
        )
    return ready(browser)


def pixels(browser, number: int) -> np.ndarray:
    """The canvas of a card: uint8 (side, side, 3)."""
    text = browser.js(
        f"""(() => {{ const c = document.querySelectorAll("#gallery-cards canvas")[{number}];
        const copy = new OffscreenCanvas(c.width, c.width).getContext("2d", {{ willReadFrequently: true }});
        copy.drawImage(c, 0, 0);
        const raw = copy.getImageData(0, 0, c.width, c.width).data; let text = "";
        for (let i = 0; i < raw.length; i += 4096) text += String.fromCharCode(...raw.subarray(i, i + 4096));
        return btoa(text); }})()"""
    )
    flat = np.frombuffer(base64.b64decode(text), np.uint8).reshape(-1, 4)
    side = round(len(flat) ** 0.5)
    return flat[:, :3].reshape(side, side, 3)


def mode(browser, name: str, truth: bool = False, opacity: float = 1.0) -> None:
    """How maps are drawn."""
    browser.js(
        f"""(() => {{ document.querySelector("[name=gallery-mode][value={name}]").click();
        const box = document.getElementById("gallery-truth"); if (box.checked !== {json.dumps(truth)}) box.click();
        const range = document.getElementById("gallery-opacity"); range.value = {opacity};
        range.dispatchEvent(new Event("input")); }})()"""
    )
    browser.settle()


def same(text: str, percent: float) -> bool:
    """Whether a card prints that Dice."""
    found = re.fullmatch(r"Dice (\d+\.\d) %", text)
    return bool(found) and abs(float(found[1]) - percent) < 0.05 + 1e-9


def test_cards_say_what_numpy_says_at_each_method_s_own_threshold(browser, report, truth):
    page = browser
    show(page, report[1], height=4000)  # what is far out of sight is not even unpacked
    lines, cards = truth.lines(), ready(page, 24)
    assert len(cards) == 24
    assert page.js('document.getElementById("gallery-count").textContent') == f"24 of {6 * len(lines)} cards"
    for k, card in enumerate(cards):
        line, name = lines[k % len(lines)], f"test_{k // len(lines):02d}"
        assert card["method"] == line.marked
        assert card["id"].startswith(name)
        assert same(card["dice"], truth.dice(line, line.first.tau_val)[name])
        assert card["tau"] == f" at {line.first.tau_val:.3f}"
        assert card["stamp"] == "SYNTHETIC DATA"
        assert card["where"].startswith("glas → glas")
    page.js('document.querySelector("[data-whose=oracle]").click()')
    line = lines[1]
    assert browser.complaints() == []
    assert same(page.js(CARDS)[1]["dice"], truth.dice(line, line.first.tau_oracle)["test_00"])


def test_slider_by_keys_redraws_and_scores(page, truth):
    line = next(x for x in truth.lines() if x.name == "pixelcam")
    methods_but(page, line.marked)
    mode(page, "region")
    page.js('document.getElementById("gallery-tau").focus()')
    _, maps, masks = truth.examples(line)
    seen = []
    steps = [("Home", 1, 0.0), ("ArrowRight", 3, 0.003), ("End", 1, 1.0), ("ArrowLeft", 2, 0.998), ("half", 0, 0.5),
             ("ArrowLeft", 1, 0.499), ("ArrowRight", 12, 0.511)]  # fmt: skip
    for key, times, tau in steps:
        if key == "half":
            page.js('document.querySelector("[data-whose=half]").click()')
        for _ in range(times):
            page.key(key)
        page.settle()
        assert page.js('document.querySelector(".g-value").textContent') == f"{tau:.3f}"
        dice = truth.dice(line, tau)
        for k, card in enumerate(ready(page)[:3]):
            assert same(card["dice"], dice[f"test_{k:02d}"]), (tau, card)
            got = pixels(page, k)
            step = len(got) // SIZE
            middle = got[step // 2 :: step, step // 2 :: step]
            called = maps[k] >= THRESHOLDS[round(tau * 1000)]
            assert ((middle == HIT).all(-1) == (called & masks[k])).all()
            assert ((middle == FALSE_ALARM).all(-1) == (called & ~masks[k])).all()
            seen.append(card["dice"])
    assert len(set(seen)) > 6


def test_heat_map_and_outlines_are_those_of_the_figures(page, truth):
    line = truth.lines()[0]
    methods_but(page, line.marked)
    _, maps, masks = truth.examples(line)
    page.js('document.querySelector("[data-whose=half]").click()')
    mode(page, "outline", truth=True)
    for k in range(3):
        blocks = pixels(page, k).reshape(SIZE, -1, SIZE, len(pixels(page, k)) // SIZE, 3)
        white, orange = ((blocks == c).all(-1).any((1, 3)) for c in ((255, 255, 255), (255, 122, 0)))
        assert (white >= outline(masks[k], 1)).all()  # the tissue itself may be white
        cut = outline(maps[k] >= 0.5, 1)
        assert (orange <= cut).all()
        assert orange[
            cut & ~outline(masks[k], 1) & ~outline(~masks[k], 1)
        ].all()  # where the line of the mask does not lie over it
    mode(page, "heat")
    page.js('document.getElementById("gallery-tau").focus()')
    page.key("End")
    page.settle()
    for k in range(3):
        got = pixels(page, k)
        step = len(got) // SIZE
        wanted = 255 * colormaps["viridis"](np.floor(maps[k] * 1000 + 1e-9) / 1000 + 0.0005)[..., :3]
        assert np.abs(got[step // 2 :: step, step // 2 :: step] - wanted).max() <= 1.01
    before = pixels(page, 0)
    mode(page, "heat", opacity=0)
    assert (before != pixels(page, 0)).mean() > 0.5


def test_filters(page, truth):
    lines = truth.lines()
    right = [(x, name) for x in lines for name, is_right in verdicts(truth, x).items() if is_right]
    cards = choose(page, "verdict", "right")
    assert len(cards) == min(24, len(right))
    assert {c["verdict"] for c in cards} == {"✓ classified right"}
    wrong = choose(page, "verdict", "wrong")
    assert len(wrong) == sum(not v for x in lines for v in verdicts(truth, x).values())
    assert all(re.fullmatch("✗ wrong: classified (benign|malignant)", c["verdict"]) for c in wrong)
    choose(page, "verdict", "")
    cards = choose(page, "class", "malignant")
    assert {c["id"] for c in cards} == {f"test_{k:02d} · malignant" for k in (1, 3, 5)}
    cards = methods_but(page, "cam", "unet ‡")
    assert [c["method"] for c in cards] == ["cam", "unet ‡"] * 3
    assert [c["method"] for c in choose(page, "order", "method")] == ["cam"] * 3 + ["unet ‡"] * 3
    cards = choose(page, "selection", "last")
    assert {c["where"] for c in cards} == {"glas → glas · resnet18 · last · fair"}
    cards = choose(page, "protocol", "paper")
    assert {c["where"] for c in cards} == {"glas → glas · resnet18 · last · paper"}
    methods_but(page)
    assert page.js('document.getElementById("gallery-count").textContent') == "No card fits these filters."
    page.js('document.getElementById("gallery-reset").click()')
    assert [c["method"] for c in ready(page)][:9] == [x.marked for x in lines]


def verdicts(truth, line) -> dict[str, bool]:
    found = read_npz(truth.store.run_dir(line.first.stage) / "scores.npz")
    if np.isnan(found["logits"]).any():
        return {}
    shown = truth.examples(line)[0]
    right = (found["logits"].argmax(1) == found["labels"]).tolist()
    return {name: r for name, r in zip(found["ids"].tolist(), right, strict=True) if name in shown}


def test_another_set_and_images_without_a_region(page, truth):
    cards = choose(page, "pair", "glas → camelyon16")
    line = truth.lines(evaluated="camelyon16")[0]
    _, maps, _ = truth.examples(line)
    share = 100 * (maps[0] >= line.first.tau_val).mean()
    assert cards[0]["id"] == "test_00 · normal"
    found = re.fullmatch(r"no region; (\d+\.\d) % called", cards[0]["dice"])
    assert found
    assert abs(float(found[1]) - share) < 0.05 + 1e-9
    cards = choose(page, "image", "camelyon16 · test_01")
    assert same(cards[0]["dice"], truth.dice(line, line.first.tau_val)["test_01"])


def test_more_cards_on_demand(page, truth):
    total = 6 * len(truth.lines())
    page.js('document.getElementById("gallery-more").click()')
    assert len(page.js(CARDS)) == min(48, total)
    page.js('document.querySelector("#gallery-cards > li:last-child").scrollIntoView()')
    page.wait(f"!({CARDS}).at(-1).dice.includes('…')")
    assert page.js('document.getElementById("gallery-more").textContent') == f"Show {total - 48} more"


def test_large_view_by_keyboard(page, truth):
    lines = truth.lines()
    title, open_ = (
        'document.getElementById("gallery-large-title").textContent',
        'document.querySelector(":modal")?.id',
    )
    page.js('document.querySelector(".g-tile").focus()')
    page.key("ArrowRight")
    page.key("Enter")
    assert page.js(open_) == "gallery-large"
    assert page.js(title).startswith(f"{lines[1].marked} · test_00")
    page.key("ArrowRight")
    page.key("ArrowRight")
    page.key("ArrowLeft")
    assert page.js(title).startswith(f"{lines[2].marked} · test_00")
    page.js('document.getElementById("gallery-tau-large").focus()')
    page.key("Home")
    page.key("ArrowRight")
    page.settle()
    assert page.js(title).startswith(f"{lines[2].marked} · test_00")  # in the slider arrows are the slider's
    text = page.wait('document.querySelector(".g-dice").textContent')
    dice, _, tau = text.partition(" at threshold ")
    assert tau == "0.001"
    assert same(dice, truth.dice(lines[2], 0.001)["test_00"])
    page.key("Escape")
    assert page.js(open_) is None
    label = json.dumps(page.js(CARDS)[2]["label"])
    page.wait(f"document.activeElement.getAttribute('aria-label') === {label}")  # closing is told a moment later
    assert page.js('document.getElementById("gallery-tau").value') == "0.001"  # one threshold, two handles


def test_foreign_names_are_text(page):
    cards = methods_but(page, HOSTILE)
    assert {c["method"] for c in cards} == {HOSTILE}
    page.js('document.querySelector(".g-tile").click()')
    assert HOSTILE in page.js('document.getElementById("gallery-large-title").textContent')
    assert page.js("document.querySelectorAll(\"img[src='x'], main script:not([type])\").length") == 0


def test_every_control_has_a_name_and_can_be_reached(page):
    page.call("Accessibility.enable")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"slider", "checkbox", "radio", "combobox", "button"}
    controls = [n for n in nodes if not n["ignored"] and n["role"]["value"] in roles]
    assert {n["role"]["value"] for n in controls} == roles
    assert [n for n in controls if not n["name"]["value"].strip()] == []
    focusable = [n for n in controls if any(p["name"] == "focusable" and p["value"]["value"] for p in n["properties"])]
    assert len(focusable) == len(controls)
    page.js('document.querySelectorAll(".g-tile")[1].focus()')
    page.key("ArrowLeft")
    assert page.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_narrow_and_dark(browser, report):
    show(browser, report[1], width=390, height=800, dark=True)
    assert browser.js("document.documentElement.scrollWidth") <= 390
    browser.js('document.querySelectorAll(".g-tile")[8].scrollIntoView()')
    assert browser.js('document.querySelector(".g-slide").getBoundingClientRect().top') == 0  # always at hand
    light = "(0.2126 * r + 0.7152 * g + 0.0722 * b)"
    colours = browser.js(
        f"""["color", "backgroundColor"].map((k) => {{
        const [r, g, b] = getComputedStyle(document.querySelector(".g-card"))[k].match(/[0-9]+/g).map(Number);
        return {light}; }})"""
    )
    assert colours[0] > 180 > 60 > colours[1]
    assert browser.complaints() == []


def test_complaints_are_heard(browser, report):
    browser.open(report[1])
    assert browser.complaints() == []
    browser.js("console.error('oh'); new Image().src = 'http://127.0.0.1:9/a.png'; true")
    browser.settle()
    text = " ".join(browser.complaints())
    assert "oh" in text
    assert "Content Security Policy" in text


# What the cards say: text as a reader gets it, in order.
CARDS = """[...document.querySelectorAll("#gallery-cards > li")].map((li) => ({
  method: li.querySelector(".g-name").textContent, dice: li.querySelector(".g-score b").textContent,
  tau: li.querySelector(".g-tau-text").textContent, id: li.querySelector(".g-id").textContent,
  where: li.querySelector(".g-where").textContent, verdict: li.querySelector(".g-verdict").textContent,
  stamp: li.querySelector(".stamp")?.textContent ?? "",
  label: li.querySelector("button").getAttribute("aria-label")}))"""
