"""The registry: names without imports, and strangers' mistakes that stop nobody else."""

import importlib.metadata
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from wsolbench.benchmark.core.errors import BenchError
from wsolbench.benchmark.core.registry import Registry, scan_source

GROUP = "wsolbench.tests"


def registry_of(tmp_path: Path, **files: str) -> Registry:
    """A registry over a folder of such files, importable as top-level modules, without plug-ins."""
    for name, text in files.items():
        (tmp_path / f"{name}.py").write_text(text)
    return Registry("method", "wsolbench_test_package", tmp_path, GROUP)


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("package, registry", [("methods", "METHODS"), ("datasets", "DATASETS")])
def test_listing_imports_neither_torch_nor_the_entries(package, registry):
    out = run_python(
        "import sys\n"
        f"from wsolbench.{package} import {registry} as registry\n"
        "names = [e.name for e in registry.entries()]\n"
        "heavy = [m for m in ('torch', 'timm', 'matplotlib', 'pandas', 'numpy') if m in sys.modules]\n"
        "own = [e.module for e in registry.entries() if e.module in sys.modules]\n"
        "print(len(names) > 0, heavy, own)"
    )
    assert out.strip() == "True [] []"


def test_facts_are_read_from_the_text_without_running_it(tmp_path):
    registry = registry_of(
        tmp_path,
        one='raise SystemError("imported!")\n\n@register("one", family="a", options={"k": (1, 2)})\nclass One:\n'
        '    """First line.\n\n    More."""\n',
        two='import elsewhere\n\n@base.register("two")\ndef two(evidence, options):\n    """A function."""\n',
        three="x = 1\n",
    )
    one, two = registry.entries()
    assert (one.name, one.shape, one.summary, one.origin) == ("one", "class", "First line.", "built-in")
    assert one.facts == {"family": "a", "options": {"k": (1, 2)}}
    assert one.module == "wsolbench_test_package.one"
    assert (two.name, two.shape, two.summary, two.facts) == ("two", "function", "A function.", {})


def test_one_name_is_registered_once(tmp_path):
    one = '@register("same")\nclass A: ...\n'
    with pytest.raises(BenchError, match=r"'same' is registered twice, by .*a and by .*b"):
        registry_of(tmp_path, a=one, b=one).entries()


def test_one_name_is_registered_once_within_a_file(tmp_path):
    registry = registry_of(tmp_path)
    mine = tmp_path / "mine.txt.py"
    mine.write_text('@register("same")\nclass A: ...\n\n@register("same")\nclass B: ...\n')
    with pytest.raises(BenchError, match="registered twice"):
        registry.load_file(mine)


def test_definitions_that_share_a_name_at_run_time_are_refused(tmp_path):
    registry = registry_of(tmp_path)

    @registry.register("same")
    class One: ...

    with pytest.raises(BenchError, match="already registered"):

        @registry.register("same")
        class Two: ...

    assert registry.load("same") is One
    again = type("One", (), {"__module__": One.__module__, "__qualname__": One.__qualname__})
    registry.register("same")(again)  # a module that is imported a second time
    assert registry.load("same") is again


def test_typing_mistakes_get_a_suggestion(tmp_path):
    registry = registry_of(tmp_path, a='@register("layercam")\nclass A: ...\n', b='@register("unet")\nclass B: ...\n')
    with pytest.raises(BenchError, match=r"no method 'layercm'\. Did you mean layercam\?"):
        registry.entry("layercm")
    with pytest.raises(BenchError, match="Known: layercam, unet"):
        registry.entry("zzz")


def test_variants_fall_back_to_their_family(tmp_path):
    text = '@register("{}")\nclass A: ...\n'
    names = ("base", "open:*", "open", "exact", "exact:one")
    registry = registry_of(tmp_path, **{f"m{i}": text.format(n) for i, n in enumerate(names)})
    found = {n: registry.entry(n).name for n in ("base", "base:x", "open:Any", "open", "exact:one", "exact:two")}
    assert found == {
        "base": "base", "base:x": "base", "open:Any": "open:*", "open": "open", "exact:one": "exact:one",
        "exact:two": "exact",
    }  # fmt: skip
    with pytest.raises(BenchError, match="no method 'none:x'"):
        registry.entry("none:x")


@pytest.mark.parametrize("facts", ["family=FAMILY", "version=1 + one()", "options={[]: 1}", "needs=f'{x}'"])
def test_facts_that_are_not_literals_are_listed_as_broken(tmp_path, facts):
    registry = registry_of(
        tmp_path, a=f'\n@register("odd", {facts})\nclass A: ...\n', b='@register("fine")\nclass B: ...\n'
    )
    assert [(e.name, bool(e.error)) for e in registry.entries()] == [("fine", False), ("odd", True)]
    with pytest.raises(BenchError, match=r"'odd' .*broken: line 2: .*literals"):
        registry.entry("odd")


def test_a_file_that_does_not_parse_stops_nobody_else(tmp_path, caplog):
    registry = registry_of(tmp_path, half='@register("half")\nclass Half(\n', fine='@register("fine")\nclass B: ...\n')
    assert [(e.name, bool(e.error)) for e in registry.entries()] == [("fine", False), ("half", True)]
    assert "does not parse" in caplog.text
    with pytest.raises(BenchError, match="broken"):
        registry.load("half")


def test_only_decorators_at_the_top_level_count():
    text = 'def f():\n    @register("inner")\n    class A: ...\n\nregister("call")\n\n'
    text += '@other("x")\nclass B: ...\n\n@register\nclass C: ...\n'
    assert scan_source(text, "m", "built-in") == []


class Point:
    """What importlib.metadata hands out for an entry point, reduced."""

    def __init__(self, name: str, action) -> None:
        self.name, self.value, self.load = name, f"package_{name}:thing", action


@pytest.fixture
def plug_in(monkeypatch):
    def install(*points: Point) -> None:
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points if group == GROUP else ())

    return install


def fail(problem: BaseException):
    def action() -> None:
        raise problem

    return action


def test_broken_plug_ins_warn_and_stop_nobody_else(tmp_path, plug_in, caplog):
    registry = registry_of(tmp_path, a='@register("home")\nclass A: ...\n')

    def good() -> None:
        registry.register("guest", family="theirs")(type("Guest", (), {"__doc__": "A guest."}))

    plug_in(
        Point("imports", fail(ImportError("no module named tensorfun"))),
        Point("exits", fail(SystemExit(3))),
        Point("raises", fail(RuntimeError("no GPU"))),
        Point("silent", lambda: None),
        Point("thief", lambda: registry.register("home")(type("Home", (), {}))),
        Point("good", good),
    )
    with caplog.at_level(logging.WARNING):
        entries = {e.name: e for e in registry.entries()}
    assert sorted(entries) == ["exits", "guest", "home", "imports", "raises", "silent", "thief"]
    assert not entries["home"].error
    assert not entries["guest"].error
    assert (entries["guest"].facts, entries["guest"].summary) == ({"family": "theirs"}, "A guest.")
    assert entries["home"].module == "wsolbench_test_package.a"
    assert "tensorfun" in entries["imports"].error
    assert "registers nothing" in entries["silent"].error
    assert "already registered" in entries["thief"].error
    for name in ("imports", "exits", "raises", "silent", "thief"):
        assert f"'{name}'" in caplog.text
        with pytest.raises(BenchError, match="broken"):
            registry.entry(name)
    assert registry.load("guest").__name__ == "Guest"
    caplog.clear()
    registry.entries()
    assert not caplog.text  # warned once


def test_a_known_name_needs_no_plug_ins(tmp_path, plug_in):
    registry = registry_of(tmp_path, a='@register("home")\nclass A: ...\n')
    plug_in(Point("bad", fail(KeyboardInterrupt())))
    assert registry.entry("home").name == "home"


MINE = '''from {package} import register

@register("mine", family="mine", options={{"k": 3}})
def mine(evidence, options):
    """My method."""
    return evidence
'''


def test_a_users_file_is_listed_then_imported(tmp_path, monkeypatch):
    (tmp_path / "house").mkdir()
    registry = registry_of(tmp_path / "house")
    monkeypatch.setitem(sys.modules, "wsolbench_test_house", type("House", (), {"register": registry.register}))
    path = tmp_path / "my method.py"
    path.write_text(MINE.format(package="wsolbench_test_house"))
    assert registry.load_file(path) == ["mine"]
    entry = registry.entry("mine")
    assert (entry.origin, entry.module, entry.facts["options"]) == ("file", str(path), {"k": 3})
    assert registry.load("mine")(5, None) == 5
    assert registry.load("mine").registered_name == "mine"
    assert registry.load_file(path) == ["mine"]  # naming it twice does no harm


def test_a_users_file_is_known_by_its_content(tmp_path):
    (tmp_path / "house").mkdir()
    hashes = []
    for text in ("return 1", "return 2", "return 1"):
        path = tmp_path / "mine.py"
        path.write_text(f'@register("mine")\ndef mine(e, o):\n    {text}\n')
        registry = registry_of(tmp_path / "house")
        registry.load_file(path)
        hashes.append(registry.entry("mine").source_hash)
    assert hashes[0] == hashes[2] != hashes[1]


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "There is no file"),
        ("x = 1\n", "registers no method"),
        ('@register("a"\n', "line 1: not valid Python"),
        ('\0@register("a")\n', "not valid Python|cannot be read"),
        ('@register("home")\nclass A: ...\n', "registered twice"),
    ],
)
def test_users_files_that_cannot_be_used_are_refused(tmp_path, text, message):
    (tmp_path / "house").mkdir()
    registry = registry_of(tmp_path / "house", a='@register("home")\nclass A: ...\n')
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BenchError, match=message):
        registry.load_file(path)


def test_a_users_file_that_raises_is_named_and_may_be_mended(tmp_path, monkeypatch):
    (tmp_path / "house").mkdir()
    registry = registry_of(tmp_path / "house")
    monkeypatch.setitem(sys.modules, "wsolbench_test_house", type("House", (), {"register": registry.register}))
    path = tmp_path / "mine.py"
    path.write_text("1 / 0\n" + MINE.format(package="wsolbench_test_house"))
    registry.load_file(path)
    with pytest.raises(BenchError, match=r"mine\.py: ZeroDivisionError"):
        registry.load("mine")
    path.write_text(MINE.format(package="wsolbench_test_house"))
    assert callable(registry.load("mine"))


def test_a_module_that_forgets_to_register_is_named(tmp_path, monkeypatch):
    (tmp_path / "wsolbench_test_lazy").mkdir()
    (tmp_path / "wsolbench_test_lazy" / "a.py").write_text(
        'def register(n): return lambda t: t\n\n@register("a")\nclass A: ...\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("method", "wsolbench_test_lazy", tmp_path / "wsolbench_test_lazy", GROUP)
    with pytest.raises(BenchError, match="did not register method 'a'"):
        registry.load("a")


SHARED = """
from .parts.shared import RECIPE, hidden
OWN = ("checkpoint:classifier",)

@register("named", needs=OWN, recipes={"paper": {"glas": {**RECIPE, "lr": 0.5}}})
def named(evidence, options): ...
"""


def test_a_decorator_may_name_literals_of_its_file_and_of_the_package(tmp_path):
    """Read from the source alone: nothing is executed, and each use has a value of its own."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "shared.py").write_text('BASE = {"epochs": 3}\nRECIPE = {**BASE, "lr": 0.1}\nX = 1 / 0\n')
    (entry,) = scan_source(SHARED, "m", "built-in", tmp_path)
    assert entry.facts == {
        "needs": ("checkpoint:classifier",), "recipes": {"paper": {"glas": {"epochs": 3, "lr": 0.5}}},
    }  # fmt: skip
    (bare,) = scan_source(SHARED, "m", "built-in")
    assert "must be literals" in bare.error
