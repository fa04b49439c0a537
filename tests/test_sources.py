"""What the sources may not hold: branches on names of methods, pickles, private places, protocols that differ."""

import ast
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

from wsolbench.datasets import DATASETS
from wsolbench.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("benchmark", "methods", "datasets", "reports")


@cache
def sources() -> dict[str, Path]:
    """Module name without `wsolbench.` -> file, for the whole package."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def literals(node: ast.AST) -> set[str]:
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def test_the_harness_branches_on_no_name():
    names = {e.name for r in (METHODS, DATASETS) for e in r.entries()}
    assert {"cam", "glas"} <= names
    found = []
    for module, path in sources().items():
        if not module.startswith(("benchmark", "reports")):
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Compare):
                words = set().union(*(literals(n) for n in (node.left, *node.comparators)))
            elif isinstance(node, ast.MatchValue):
                words = literals(node.value)
            else:
                continue
            found += [f"{module}:{node.lineno} compares with '{word}'" for word in words & names]
    assert not found


UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "_pickle"}
UNSAFE_CALLS = {"eval", "exec", "read_pickle", "to_pickle", "joblib.load", "joblib.dump"}


def called(node: ast.Call) -> tuple[str, str]:
    """The last part and the last two parts of what is called."""
    parts = ast.unparse(node.func).split(".")
    return parts[-1], ".".join(parts[-2:])


def keyword(node: ast.Call, name: str) -> object:
    return next((k.value.value for k in node.keywords if k.arg == name and isinstance(k.value, ast.Constant)), None)


def unsafe(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):  # `import pickle` alone may be there for the name of an error to catch
        return any(a.asname and a.name in UNSAFE_MODULES for a in node.names)
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").split(".")[0] in UNSAFE_MODULES
    if isinstance(node, ast.Attribute):
        return isinstance(node.value, ast.Name) and node.value.id in UNSAFE_MODULES and not node.attr.endswith("Error")
    if not isinstance(node, ast.Call):
        return False
    short, long = called(node)
    if keyword(node, "allow_pickle") or (long == "torch.load" and keyword(node, "weights_only") is not True):
        return True
    return long in UNSAFE_CALLS or (isinstance(node.func, ast.Name) and short in UNSAFE_CALLS) or short == "read_pickle"


@pytest.mark.parametrize(
    "text, bad",
    [
        ("pickle.load(f)", True), ("import pickle as p", True), ("from pickle import loads", True), ("eval(x)", True),
        ("try: f()\nexcept pickle.UnpicklingError: pass", False), ("model.eval()", False), ("torch.load(p)", True),
        ("torch.load(p, weights_only=False)", True), ("torch.load(p, weights_only=True)", False),
        ("np.load(p, allow_pickle=True)", True), ("np.load(p, allow_pickle=False)", False), ("pd.read_pickle(p)", True),
    ],
)  # fmt: skip
def test_the_scan_for_unsafe_reading_works(text, bad):
    assert any(unsafe(n) for n in ast.walk(ast.parse(text))) == bad


def test_reading_our_files_executes_no_code():
    found = [f"{m}:{n.lineno}" for m, p in sources().items() for n in ast.walk(tree(p)) if unsafe(n)]  # pyright: ignore
    assert not found


PLACES = re.compile(
    r"(?<![\w.~}$])/(?:home|root|Users|work|mnt)/\w"  # somebody's own folders
    r"|index[-_]url\s*[=:\s]|/simple/?(?=[\s\"']|$)|file:///",  # package registries
    re.IGNORECASE,
)


def tracked_text_files() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    texts = [p for p in paths if p.is_file() and b"\0" not in p.read_bytes()[:4096]]
    return [p for p in texts if p != Path(__file__).resolve()]


@pytest.mark.parametrize("text", ["/home/me/x", "see /root/x", "pip --index-url x", "https://host/repo/simple/"])
def test_the_scan_for_places_works(text):
    assert PLACES.search(text)
    assert not PLACES.search("a simple/plain thing, ~/home/x, <repo>/../shared/data, /homework, tests/work/x")


def test_no_file_names_a_private_place():
    found = []
    for path in tracked_text_files():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if PLACES.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def data_protocols(text: str) -> list[str]:
    """Protocols marked `runtime_checkable` that have data members: isinstance of them differs between Pythons."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef) and "runtime_checkable" in " ".join(map(ast.unparse, node.decorator_list)):
            members = [n for n in node.body if isinstance(n, ast.AnnAssign | ast.Assign)]
            properties = [
                n for n in node.body if "property" in " ".join(map(ast.unparse, getattr(n, "decorator_list", [])))
            ]
            found += [node.name] * bool(members or properties)
    return found


@pytest.mark.parametrize(
    "body, bad", [("x: int", True), ("@property\n    def x(self): ...", True), ("def x(self): ...", False)]
)
def test_the_scan_for_protocols_works(body, bad):
    text = f"@typing.runtime_checkable\nclass P(Protocol):\n    {body}\n"
    assert data_protocols(text) == ["P"] * bad


def test_nothing_depends_on_how_a_python_looks_up_the_data_members_of_a_protocol():
    """From 3.12 on isinstance looks them up without `__getattr__`, by which torch modules serve their submodules."""
    found = {m: data_protocols(p.read_text(encoding="utf-8")) for m, p in sources().items()}
    assert {m: names for m, names in found.items() if names} == {}
