"""Input made to do harm: names that are markup or commands, paths that leave, files that unpack to gigabytes."""

import gzip
import json
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.faults.matrix import Matrix
from wsolbench.benchmark.conformance.synthetic_task import write_blobs
from wsolbench.benchmark.core.errors import BenchError, plain
from wsolbench.benchmark.core.files import write_json
from wsolbench.benchmark.core.results_store import Store
from wsolbench.benchmark.scoring.map_files import read_map
from wsolbench.benchmark.scoring.map_files import read_mask as score_mask
from wsolbench.datasets.masks.decode import decode_image, image_size
from wsolbench.datasets.masks.reader import read_mask
from wsolbench.datasets.parts.camelyon_lists import read_labels
from wsolbench.datasets.parts.marker import read_marker

RUN = "window.hacked=1"
NAME = f"set</title><script>{RUN}</script>$\\frac{{$"
PLAIN_CLASS, BLOB_CLASS = f'"><img src=x onerror={RUN}>', f"<svg onload={RUN}>$\\frac{{$"
ID = f"</script><script>{RUN}</script>{{{{7*7}}}}$_$"
GROUP, LICENCE = f"<iframe srcdoc='<script>parent.{RUN}</script>'>", f"<a href='javascript:{RUN}'>CC</a>"
FOREGROUND, ERROR = f"<style onload={RUN}>", f"<details open ontoggle={RUN}>\x1b[2Jgone\x1b]0;title\x07"
LABEL = "=HYPERLINK(1)\\input{/etc/passwd}\x1b[31m|x|`y`<b>"

NO_FIGURES = "from wsolbench.reports.drawing import jobs; jobs.FIGURES = {}"


# -- names ------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def hostile(warm_bench, tmp_path_factory) -> Path:
    """The results folder of a run on a table full of markup, with a failure whose texts are no better."""
    folder = tmp_path_factory.mktemp("hostile")
    lines = write_blobs(folder / "data").read_text().splitlines()[4:]
    head = [
        f"# name: {NAME}", f"# classes: {PLAIN_CLASS}, {BLOB_CLASS}", f"# positive: {BLOB_CLASS}",
        f"# background: {PLAIN_CLASS}", f"# foreground: {FOREGROUND}", f"# licence: {LICENCE}",
    ]  # fmt: skip
    rows = []
    for line in lines[1:]:
        name, image, mask, kind, group, split = line.split(",")
        label = PLAIN_CLASS if kind == "plain" else BLOB_CLASS
        quoted = [f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in (f"{ID}{name}", label, f"{GROUP}{group}")]
        rows.append(",".join([quoted[0], image, mask, *quoted[1:], split]))
    table = folder / "data" / "hostile.csv"
    table.write_text("\n".join([*head, lines[0], *rows]) + "\n")
    Matrix(warm_bench, table).rows(folder / "r", methods="cam,random")
    labels = {"method": LABEL, "options": LABEL, "backbone": "resnet18", "train": NAME, "fold": LABEL, "seed": 0}
    failure = {"kind": "train", "labels": labels, "error": ERROR, "status": "diverged", "epoch": 1, "ids": [ID]}
    Store(folder / "r").fail("f" * 20, failure)
    return folder / "r"


@pytest.fixture(scope="module")
def written(warm_bench, hostile) -> Path:
    """Its report, without figures: they take most of a minute, see below."""
    made = warm_bench("report", "--results", hostile, inject=NO_FIGURES)
    assert made.returncode == 0, made.stderr
    assert "\x1b" not in made.stdout + made.stderr
    return hostile / "report"


def test_names_run_nothing_on_the_page(browser, written):
    browser.open((written / "index.html").as_uri())
    browser.wait("!document.getElementById('gallery-body').hidden")
    browser.js("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    browser.js("document.querySelector('.g-tile').click()")
    browser.settle()
    assert browser.js("typeof window.hacked") == "undefined"
    assert browser.complaints() == []
    foreign = (
        "script:not([type]):not(:last-of-type), svg, iframe, style[onload], details[ontoggle], a[href^=javascript]"
    )
    assert browser.js(f"document.querySelectorAll({json.dumps(foreign)}).length") == 0
    assert browser.js("document.querySelectorAll(\"img[src='x']\").length") == 0
    assert browser.js("document.title").endswith(NAME)
    shown = browser.js("document.body.textContent")
    for text in (NAME, PLAIN_CLASS, BLOB_CLASS, FOREGROUND, LICENCE, "<details open ontoggle=", "=HYPERLINK(1)\\input"):
        assert text in shown, text
    large = browser.js("document.getElementById('gallery-large').textContent")
    assert ID in large
    assert PLAIN_CLASS in large or BLOB_CLASS in large


def test_a_script_that_got_in_would_be_noticed(browser, written, tmp_path):
    """Else the test above would prove nothing; the page's own policy is taken out, as it would stop the script."""
    html = (written / "index.html").read_text()
    start = html.index("<meta http-equiv")
    without = html[:start] + html[html.index(">", start) + 1 :]
    page = tmp_path / "page.html"
    page.write_text(without.replace("</main>", f"<img src=x onerror={RUN}></main>"))
    browser.open(page.as_uri())
    browser.wait("window.hacked === 1")
    page.write_text(html.replace("</main>", f"<img src=x onerror={RUN}></main>"))
    browser.open(page.as_uri())
    browser.settle()
    assert browser.js("typeof window.hacked") == "undefined"  # the policy stops what escaping would let through
    assert browser.complaints()


def test_names_are_text_in_tables_of_every_format(written):
    markdown = (written / "report.md").read_text()
    for tag in ("<script", "<img", "<svg", "<iframe", "<details", "<b>"):
        assert tag not in markdown
    assert "](javascript" not in markdown
    tex = (written / "report.tex").read_text()
    assert "\\input{/etc" not in tex
    assert "\\textbackslash{}input\\{/etc/passwd\\}" in tex
    rows = (written / "rows.csv").read_text()
    assert "'=HYPERLINK(1)" in rows
    for name in ("report.md", "report.tex", "rows.csv", "index.html"):
        assert "\x1b" not in (written / name).read_text(), name
    files = [p for p in written.rglob("*") if p.is_file()]
    assert {p.parent for p in files} == {written}


@pytest.mark.slow
def test_figures_show_names_as_they_are(warm_bench, hostile, tmp_path):
    """Half a formula among them, which would end the drawing if names were read as mathematics."""
    made = warm_bench("report", "--results", hostile, "--out", tmp_path / "out")
    assert made.returncode == 0, made.stderr
    figures = list((tmp_path / "out" / "figures").iterdir())
    assert len(figures) >= 10
    assert max(len(p.name) for p in figures) < 200
    assert {p.parent.name for p in (tmp_path / "out").rglob("*") if p.is_file()} == {"out", "figures"}
    assert "Figures left out" not in (tmp_path / "out" / "index.html").read_text()


def test_names_do_not_steer_the_terminal(warm_bench, hostile):
    status = warm_bench("status", "--results", hostile)
    assert "DIVERGED ffffffffffffffffffff" in status.stdout
    assert "\\x1b[2Jgone\\x1b]0;title\\x07" in status.stdout
    for words in (("status",), ("status", "--json"), ("report", "--json")):
        done = warm_bench(*words, "--results", hostile)
        assert not {"\x1b", "\x07"} & set(done.stdout + done.stderr)


@pytest.mark.slow
def test_data_prints_and_draws_names_as_they_are(warm_bench, hostile, tmp_path):
    table = hostile.parent / "data" / "hostile.csv"
    for verb in ("info", "verify"):
        done = warm_bench("data", verb, table, "--results", tmp_path / "r")
        assert done.returncode == 0, done.stderr
        assert NAME in done.stdout
    assert {p.parent for p in (tmp_path / "r").rglob("*.png")} == {tmp_path / "r" / "data"}


def test_score_prints_labels_as_they_are(warm_bench, tmp_path):
    for folder in ("maps", "masks"):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            image = Image.new("L", (8, 8), 9)
            image.putpixel((0, 0), 0)
            image.save(tmp_path / folder / f"{name}.png")
    (tmp_path / "labels.csv").write_text("id,label\na,\x1b[2Jx\nb,y\n")
    done = warm_bench("score", "--maps", tmp_path / "maps", "--masks", tmp_path / "masks", "--labels",
                      tmp_path / "labels.csv")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "class \\x1b[2Jx" in done.stdout
    assert "\x1b" not in done.stdout


def test_plain_text_keeps_every_script_and_writes_out_what_steers():
    for text in ("größer 組織 तमिल\u200dx 👩\u200d🔬 עברית\n", "a\u200fb"):
        assert plain(text) == text
    assert plain("\x1b[1m\t\r\x9b\u202e\u2066\udcff\u2028") == "\\x1b[1m\\t\\r\\x9b\\u202e\\u2066\\udcff\\u2028"
    assert str(BenchError("a\x07")) == "a\\x07"


# -- paths ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", ["../outside.png", "a/../../outside.png", "{outside}", "/etc/passwd", "~/x.png"])
def test_a_table_reads_nothing_outside(warm_bench, blobs, tmp_path, path):
    data = tmp_path / "data"
    write_blobs(data)
    outside = tmp_path / "outside.png"
    (data / "test_00.png").rename(outside)
    table = data / "blobs.csv"
    table.write_text(table.read_text().replace("test_00.png", path.format(outside=outside)))
    done = Matrix(warm_bench, table).run(tmp_path / "r", methods="random")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert any(words in done.stderr for words in ("leaves the folder", "lies neither in", "files are missing"))
    assert not (tmp_path / "r" / "runs").exists()
    if path == "{outside}":  # whoever means it says so
        allowed = Matrix(warm_bench, table).run(tmp_path / "r", "--data-root", tmp_path, methods="random")
        assert allowed.returncode == 0, allowed.stderr


# -- bombs ------------------------------------------------------------------------------------------------------------
def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, more: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(10_000_000), 9))
    return b"\x89PNG\r\n\x1a\n" + head + more + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_000, 60_000, 2_000_000_000])
def test_an_image_that_unpacks_to_gigabytes_is_refused_by_its_header(tmp_path, monkeypatch, side):
    def never(self):
        raise AssertionError("pixels were read")

    Image.init()  # its plug-ins read images of their own
    monkeypatch.setattr(Image.Image, "load", never)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side))
    for read in (decode_image, read_mask, image_size, read_map, score_mask):
        with pytest.raises(BenchError, match=r"bomb\.png .*Cut it into patches first"):
            read(path)


def test_a_large_slide_export_is_still_read(tmp_path):
    """The limit is far above real images: 64 million px."""
    Image.new("L", (8000, 8000), 200).save(tmp_path / "large.png", compress_level=1)
    assert read_mask(tmp_path / "large.png").foreground.all()


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP"])
def test_text_that_unpacks_to_gigabytes_is_refused(tmp_path, kind):
    packed = zlib.compress(bytes(50_000_000), 9)
    (tmp_path / "text.png").write_bytes(png(1000, 10_000, chunk(kind, b"k\0\0" + packed)))
    with pytest.raises(BenchError, match=r"text\.png cannot be read"):
        decode_image(tmp_path / "text.png")


def test_other_formats_under_the_name_of_a_png_are_not_tried(tmp_path):
    """Pillow would start an interpreter of PostScript."""
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    for read in (decode_image, read_mask, read_map, score_mask):
        with pytest.raises(BenchError, match="damaged or none of"):
            read(tmp_path / "a.png")


def npz_of(path: Path, shape: str, descr: str = "<f8", body: bytes = bytes(64)) -> Path:
    """An npz whose header claims what its body does not hold."""
    head = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("map.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + body)
    return path


def test_arrays_that_claim_or_unpack_to_too_much_are_refused(tmp_path, monkeypatch):
    for shape in ("(200000, 1000000)", "(99999999999, 99999999999)", "(-1, 4)"):
        with pytest.raises(BenchError, match=r"lie\.npz"):
            read_map(npz_of(tmp_path / "lie.npz", shape))
    monkeypatch.setattr("wsolbench.datasets.masks.arrays.MAX_BYTES", 1 << 20)
    large = npz_of(tmp_path / "bomb.npz", "(4096, 512)", "|u1", bytes(4096 * 512))
    assert large.stat().st_size < 10_000
    with pytest.raises(BenchError, match=r"too much for one \.npz"):
        read_map(large)


def test_objects_in_an_array_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "o.npz", map=np.array([[{}]], dtype=object))
    with pytest.raises(BenchError, match=r"o\.npz cannot be read"):
        read_map(tmp_path / "o.npz")


def test_a_list_that_unpacks_to_gigabytes_is_no_list(tmp_path):
    path = tmp_path / "class_labels.txt.gz"
    with gzip.open(path, "wb", 1) as handle:
        for _ in range(70):
            handle.write(bytes(1_000_000))
    with pytest.raises(BenchError, match="more than 64 MB of text"):
        read_labels(path, "camelyon16")


def test_lists_cannot_name_what_is_elsewhere_or_steer_the_terminal(tmp_path):
    name = "Patch_file_training-normal-normal_001.tif_patch_0_x_0_y_100_tissue_0.75_w_512_h_512.png"
    for folder in ("camelyon16/..", "camelyon16/../..", "/camelyon16", "camelyon16//x", "camelyon16/\x1b[2J", "x"):
        (tmp_path / "class_labels.txt").write_text(f"{folder}/{name},0\n")
        with pytest.raises(BenchError, match=r"is not a path below camelyon16/") as caught:
            read_labels(tmp_path / "class_labels.txt", "camelyon16")
        assert "\x1b" not in str(caught.value)


def test_json_of_absurd_depth_is_damage(matrix, tmp_path):
    deep = "[" * 100_000 + "]" * 100_000
    results = tmp_path / "r"
    rows = matrix.rows(results, methods="random")
    (results / "runs" / rows[0]["stage"] / "record.json").write_text(deep)
    (results / "cache" / "file-hashes.json").write_text(deep)
    (results / "data").mkdir(exist_ok=True)
    (results / "data" / "blobs-verify.json").write_text(deep)
    status = matrix.bench("status", "--results", results)
    assert status.returncode == 0
    assert f"ignored {rows[0]['stage']}" in status.stdout
    verified = matrix.bench("data", "verify", matrix.csv, "--results", results)
    assert "blobs-verify.json: damaged, ignored and written anew" in verified.stdout
    (tmp_path / "SYNTHETIC.json").write_text(deep)
    with pytest.raises(BenchError, match="is damaged"):
        read_marker(tmp_path)
    write_json(tmp_path / "SYNTHETIC.json", [1])
    with pytest.raises(BenchError, match="does not say"):
        read_marker(tmp_path)
