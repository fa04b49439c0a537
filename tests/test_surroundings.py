"""What the surrounding program or a user's own settings ask of matplotlib plays no part in the figures."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = "module://matplotlib_inline.backend_inline"
CALL = "import sys; from wsolbench.benchmark.cli import main; main(sys.argv[1:])"


@pytest.fixture(scope="module")
def glas(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("glas")
    done = bench({}, "data", "synth", "--datasets", "glas", "--out", root, "--train", 20, "--test", 4, "--size", 64)
    assert done.returncode == 0, done.stderr
    return root


def bench(env: dict[str, str], *words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", CALL, *(str(w) for w in words)]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, timeout=300)


def sheet(glas: Path, tmp_path: Path, env: dict[str, str]) -> bytes:
    done = bench(env, "data", "info", "glas", "--folds", "grouped-0", "--data-root", glas, "--results", tmp_path)
    assert done.returncode == 0, done.stderr
    return next(tmp_path.rglob("*.png")).read_bytes()


def test_figures_do_not_depend_on_the_backend_or_the_style_of_a_user(glas, tmp_path):
    style = tmp_path / "matplotlibrc"
    style.write_text("text.usetex: True\nfont.size: 31\naxes.facecolor: black\nsavefig.dpi: 17\n")
    plain = sheet(glas, tmp_path / "plain", {"MPLBACKEND": ""})
    for name, env in {
        "notebook": {"MPLBACKEND": NOTEBOOK},
        "nonsense": {"MPLBACKEND": "no such backend", "MATPLOTLIBRC": str(style)},
    }.items():
        assert sheet(glas, tmp_path / name, env) == plain, name


def test_the_style_of_a_report_is_the_same_everywhere(monkeypatch):
    import matplotlib
    from matplotlib.figure import Figure

    from wsolbench.reports.drawing.base import house_style, render

    def drawn() -> bytes:
        with house_style():
            figure = Figure(figsize=(2, 2))
            figure.subplots().set_title("$\\alpha$")
        return render(figure, "pdf")

    plain = drawn()
    assert b"/Type3" not in plain  # fonts that journals refuse
    with matplotlib.rc_context({"text.usetex": True, "font.size": 31, "pdf.fonttype": 3}):
        assert drawn() == plain
