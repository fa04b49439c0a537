"""The speed table: marks are judged as written, and a script that fails or prints no rows is a row that says so."""

import json
import sys

import pytest

from tests.speed import table
from tests.speed.rows import Row

GOOD = Row("a", "b", 1.2, "<= 1.3", {"ours": 1.0}, {"device": "cpu"}, note="as | told")


@pytest.mark.parametrize(
    ("ratio", "reach", "holds", "ok"),
    [
        (1.3, "<= 1.3", True, True), (1.31, "<= 1.3", True, False), (15.0, ">= 15", True, True),
        (14.9, ">= 15", True, False), (1.0, "<= 1.3", False, False), (None, "<= 1.3", True, None),
        (3.0, "", True, None), (3.0, "", False, False),
    ],
)  # fmt: skip
def test_a_mark_is_judged_as_written(ratio, reach, holds, ok):
    row = Row("a", "b", ratio, reach, holds=holds)
    assert row.ok is ok
    assert row.to_json().keys() >= table.KEYS
    assert row.to_line()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three scripts: one works and knows devices, one dies after its first row, one prints something else."""
    good = json.dumps(GOOD.to_json())
    scripts = {
        "good": 'import argparse\nparser = argparse.ArgumentParser()\nparser.add_argument("--device")\n'
        "parser.add_argument('--json', action='store_true')\nassert parser.parse_args().device == 'cpu'\n"
        f"print('''{good}''')",
        "dies": f"import sys\nassert sys.argv[1:] == ['--json']\nprint('''{good}''')\nsys.exit(3)",
        "talks": "print('hello')",
        "short": 'print(\'{"what": "x"}\')',
    }
    for name, text in scripts.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(table, "HERE", tmp_path)
    monkeypatch.setattr(table, "SCRIPTS", {n: f"{n}.py" for n in (*scripts, "gone")})


@pytest.mark.parametrize(
    ("name", "notes"),
    [
        ("good", ["as | told"]), ("dies", ["as | told", "exit code 3"]), ("talks", ["no JSON: hello"]),
        ("short", ["lacks conditions, ok"]), ("gone", ["no such script"]),
    ],
)  # fmt: skip
def test_what_a_script_prints_becomes_rows(folder, name, notes):
    rows = table.run(name, "cpu")
    assert len(rows) == len(notes)
    assert all(part in row["note"] for part, row in zip(notes, rows, strict=True))
    assert bool(rows[-1].get("failed")) is (name != "good")
    assert {len(line.replace("\\|", "").split("|")) for line in table.markdown({}, rows).splitlines()[2:]} == {8}


@pytest.mark.parametrize(("only", "code"), [("good", 0), ("good,dies", 1), ("good,good,", 0)])
def test_only_a_failed_script_fails_the_table(folder, monkeypatch, capsys, only, code):
    monkeypatch.setattr(table, "machine", lambda: {"cpu": "x"})
    monkeypatch.setattr(sys, "argv", ["table.py", "--json", "--only", only, "--device", "cpu"])
    with pytest.raises(SystemExit) as ended:
        table.main()
    assert ended.value.code == code
    found = json.loads(capsys.readouterr().out)
    assert found["machine"] == {"cpu": "x"}
    assert found["rows"][0] == {"script": "good", **json.loads(json.dumps(GOOD.to_json()))}


def test_an_unknown_script_is_named(folder):
    with pytest.raises(SystemExit, match="no bad"):
        table.chosen("good,bad")
