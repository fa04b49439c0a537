"""The structure of the sources as a graph: modules, rooms (folders), imports of every kind, and the rules they break.

`breaches()` gives every breach of a rule as one line; `tests/test_architecture.py` holds that there are none.
`python tests/house.py` prints them.
"""

import ast
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("benchmark", "methods", "datasets", "reports")
MAX_FILES, MAX_LINES, MAX_FUNCTION, MAX_PARAMETERS = 14, 400, 50, 6
OPEN_ENDED = ("methods", "datasets")  # one file a method or dataset: these rooms grow without limit

# From the ground floor up. A room sees the rooms of the rows before its own; rooms of one row do not see each other.
ROOMS = (
    ("benchmark.core",),
    ("methods", "datasets"),
    ("benchmark.planning",),
    ("benchmark.distributed",),
    ("benchmark.data",),
    ("benchmark.scoring",),
    ("benchmark.training",),
    ("benchmark.stages",),
    ("benchmark.execution",),
    ("benchmark.maintenance",),
    ("benchmark.conformance",),
    ("benchmark.cli",),
)
# The same inside a package: modules or rooms; what is not named stands above all that is.
INNER = {
    "methods": (
        ("methods.backbones",),
        ("methods.needs", "methods.spec", "methods.evidence", "methods.base", "methods.adapter"),
        ("methods.parts",),
        ("methods.factory",),
    ),
    "datasets": (
        ("datasets.masks", "datasets.wsi", "datasets.shifts", "datasets.parts.identity"),
        ("datasets.base",),
        ("datasets.parts", "datasets.masks.sets"),
        ("datasets",),  # one file a dataset
        ("datasets.open",),
        ("datasets.parts.leaks",),
        ("datasets.info", "datasets.verify"),
        ("datasets.synthesis", "datasets.patches", "datasets.parts.split_table"),
    ),
    "reports": (
        ("reports.statistics",),
        ("reports.rows",),
        ("reports.tables",),
        ("reports.drawing",),
        ("reports.figures",),
        ("reports.page",),
    ),
}
TOGETHER = {
    "methods.needs",
    "methods.spec",
    "methods.evidence",
    "methods.base",
    "methods.adapter",
}  # contract files, which may see each other
SEES_REPORTS = ("benchmark.cli", "benchmark.conformance")


@cache
def sources() -> dict[str, Path]:
    """Module name without `wsolbench.` -> file, for the whole package."""
    modules = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def room_of(module: str) -> str:
    """The folder a module lies in, as a dotted name."""
    return module if sources()[module].name == "__init__.py" else module.rpartition(".")[0]


def at_import(body: list[ast.stmt]) -> Iterator[ast.AST]:
    """The statements that run when a module is imported: those in functions and under TYPE_CHECKING left out."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        yield node
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            for field in ("body", "orelse", "finalbody", "handlers"):
                yield from at_import(getattr(node, field, []))


def imported_names(module: str, lazy: bool = True) -> Iterator[str]:
    """Modules of the package that a module imports (lazy: in functions and for types too), without `wsolbench.`."""
    path = sources()[module]
    package = room_of(module).split(".")
    for node in ast.walk(tree(path)) if lazy else at_import(tree(path).body):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("wsolbench."):
                    yield alias.name.removeprefix("wsolbench.")
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            elif node.module and node.module.split(".")[0] == "wsolbench":
                base = node.module.split(".")[1:]
            else:
                continue
            for alias in node.names:
                whole = ".".join([*base, alias.name])
                yield whole if whole in sources() else ".".join(base)


@cache
def graph(lazy: bool = True) -> dict[str, frozenset[str]]:
    """What every module imports."""
    return {m: frozenset(n for n in imported_names(m, lazy) if n in sources() and n != m) for m in sources()}


def _row(module: str, rows: tuple[tuple[str, ...], ...]) -> int:
    """The row of the longest name in the table that the module is or lies in; above all where none does."""
    best, level = "", len(rows)
    for number, names in enumerate(rows):
        for name in names:
            if (module == name or module.startswith(f"{name}.")) and len(name) > len(best):
                best, level = name, number
    return level


def sees(a: str, b: str) -> bool:
    """Whether the import rule lets module `a` import module `b`."""
    top_a, top_b = a.split(".")[0], b.split(".")[0]
    if top_b == "reports" and top_a != "reports":
        return a.startswith(SEES_REPORTS)
    if top_a == "reports" and top_b != "reports":
        return b.startswith("benchmark.core")
    if top_a == top_b and top_a != "benchmark":
        if b == top_b:  # the registry in its __init__
            return True
        row_a, row_b = _row(a, INNER.get(top_a, ())), _row(b, INNER.get(top_a, ()))
        return row_b <= row_a
    row_a, row_b = _row(a, ROOMS), _row(b, ROOMS)
    return row_b < row_a or (row_a == row_b and room_of(a).split(".")[:2] == room_of(b).split(".")[:2])


def circles() -> list[str]:
    """Modules that import each other in a circle, each group a line (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for target in sorted(graph()[module]):
            if target not in index:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], index[target])
        if low[module] == index[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                groups.append(" <-> ".join(sorted(group)))

    for module in sources():
        if module not in index:
            visit(module)
    return sorted(groups)


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function with its dotted name."""
    for module, path in sources().items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{module}.{node.name}", node


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many a caller must know; none counted of a verb, whose are the options of a command, and of a kernel."""
    if any(word in ast.unparse(d) for d in node.decorator_list for word in ("command", "jit")):
        return 0
    names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
    return len([n for n in names if n not in ("self", "cls")])


def _class_names() -> list[str]:
    owners: dict[str, list[str]] = {}
    for module, path in sources().items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                owners.setdefault(node.name, []).append(module)
    return [f"{name}: {', '.join(modules)}" for name, modules in sorted(owners.items()) if len(modules) > 1]


def _bags() -> list[str]:
    """Modules that read a stage's inputs by string."""
    return sorted(m for m, path in sources().items() if 'work["' in path.read_text(encoding="utf-8"))


def _long_files() -> list[str]:
    return [m for m, p in sources().items() if len(p.read_text(encoding="utf-8").splitlines()) > MAX_LINES]


def _full_rooms() -> list[str]:
    count = Counter(room_of(m) for m, p in sources().items() if p.name != "__init__.py")
    return [f"{room}: {n} files" for room, n in sorted(count.items()) if n > MAX_FILES and room not in OPEN_ENDED]


RULES: dict[str, Callable[[], list[str]]] = {
    "imports against the order of rooms": lambda: [
        f"{a} -> {b}" for a, targets in graph().items() for b in sorted(targets) if not sees(a, b)
    ],
    "circles": circles,
    "rooms with too many files": _full_rooms,
    "files too long": _long_files,
    "functions too long": lambda: sorted(
        name for name, node in functions() if (node.end_lineno or 0) - node.lineno + 1 > MAX_FUNCTION
    ),
    "functions with too many parameters": lambda: sorted(
        name for name, node in functions() if _parameters(node) > MAX_PARAMETERS
    ),
    "class names used twice": _class_names,
    "stage inputs read by string": _bags,
}


def breaches() -> dict[str, list[str]]:
    """Every breach of every rule, the rules that nothing breaks left out."""
    return {rule: lines for rule, find in RULES.items() if (lines := find())}


if __name__ == "__main__":
    import json
    import sys

    sys.stdout.write(json.dumps(breaches(), indent=1) + "\n")
