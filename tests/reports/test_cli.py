"""`bench report` as typed."""

import json
import subprocess
import sys

import pytest

from wsolbench.benchmark.cli import main


def call(capsys, *words: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as done:
        main(["report", *(str(w) for w in words)])
    out, err = capsys.readouterr()
    return int(done.value.code or 0), out, err


def test_writes_beside_the_results(capsys, small):
    code, out, _ = call(capsys, "--results", small.root, "--format", "csv,tex")
    assert code == 0
    assert out.split() == [str(small.root / "report" / n) for n in ("rows.csv", "lines.csv", "report.tex")]
    assert (small.root / "report" / "rows.csv").is_file()


def test_json_is_all_there_is_on_stdout(capsys, results, found):
    code, out, _ = call(capsys, "--results", results.root, "--json")
    rows = json.loads(out)
    assert code == 0
    assert len(rows) == len(found.rows) > 50
    assert not (results.root / "report").exists()


def test_mistakes_exit_with_2_and_say_what_to_do(capsys, tmp_path, results):
    code, out, err = call(capsys, "--results", tmp_path)
    assert (code, out) == (2, "")
    assert "bench run" in err
    code, _, err = call(capsys, "--results", results.root, "--out", tmp_path, "--format", "pdf")
    assert code == 2
    assert "md" in err


def test_verb_is_light_to_import():
    heavy = "numpy pandas matplotlib seaborn torch jinja2 PIL"
    code = f"import sys, wsolbench.benchmark.cli.report; print(*(m for m in '{heavy}'.split() if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
