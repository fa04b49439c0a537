"""One registry for methods and datasets: a decorator on a class or function, found without importing it.

Facts about an entry stand in its decorator as literals, or as names of module-level literals of the same file or of a
file of this package. Listing and planning read them from the source text, so that
`bench list` never imports torch; the code itself is imported by name, when a stage needs it.
"""

import ast
import contextlib
import copy
import hashlib
import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .errors import BenchError, did_you_mean

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One registered name. `facts` are the decorator's keywords; `error` is why it cannot be used, empty if it can."""

    name: str
    origin: str  # "built-in", "entry point" or "file"
    module: str = ""  # import path of the module that registers it; for origin "file" the path of the file
    shape: str = "class"  # "class" or "function"
    summary: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    source_hash: str = ""  # of a user's own file: part of the identity, as nobody bumps its version while trying


class Registry:
    """Names to implementations, from a package folder, from entry points, and from single files of users."""

    def __init__(
        self, kind: str, package: str, folder: Path, group: str, more_names: Callable[[], list[str]] = list,
        *, calls: Mapping[str, Callable[..., Any]] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        """more_names: names that an entry such as `gradcam:*` stands for, to be suggested for a mistyped one.

        calls: what decorators may call, with literals, by name.
        """
        self.kind, self.package, self.folder, self.group, self._more_names = kind, package, folder, group, more_names
        self._calls = calls
        self._entries: dict[str, Entry] = {}
        self._objects: dict[str, Any] = {}
        self._origin = ("built-in", "")
        self._scanned = False
        self._plugins_loaded = False

    # -- registering -------------------------------------------------------------------------------------------------
    def register(self, name: str, **facts: Any) -> Callable[[Any], Any]:
        """Decorator: makes `name` known. Facts must be literals. Raises BenchError if another module owns the name."""

        def decorate(target: Any) -> Any:
            self._scan()
            known = self._entries.get(name)
            module = sys.modules.get(target.__module__)
            where = getattr(module, "__file__", None) or target.__module__
            twin = self._objects.get(name)
            if known and not (self._same_source(known, target.__module__, where) and _same_place(twin, target)):
                raise BenchError(
                    f"{self.kind} '{name}' of {where} is already registered by {known.module}. Choose another name."
                )
            if not known:
                origin, source = self._origin if self._origin[1] else ("entry point", target.__module__)
                self._entries[name] = Entry(
                    name, origin, source, _shape(target), _first_line(target.__doc__ or ""), dict(facts)
                )
            self._objects[name] = target
            target.registered_name = name
            return target

        return decorate

    @staticmethod
    def _same_source(known: Entry, module: str, path: str) -> bool:
        return known.module == module or (known.origin == "file" and Path(known.module) == Path(path))

    # -- finding -----------------------------------------------------------------------------------------------------
    def _scan(self) -> None:
        """Reads the decorators of every file of the package folder, importing none."""
        if self._scanned:
            return
        self._scanned = True
        for path in sorted(self.folder.glob("*.py")):
            module = f"{self.package}.{path.stem}"
            try:
                self._add(self._read(path, module, "built-in"))
            except (
                SyntaxError,
                ValueError,
            ) as problem:  # ValueError: not UTF-8; half-written, it must stop nobody else
                log.warning("%s file %s does not parse: %s", self.kind, path, problem)
                self._entries.setdefault(path.stem, Entry(path.stem, "built-in", module, error=str(problem)))

    def _read(self, path: Path, module: str, origin: str) -> list[Entry]:
        return scan_source(path.read_text(encoding="utf-8"), module, origin, self.folder, self._calls)

    def _add(self, declared: list[Entry]) -> None:
        """Takes over what one file declares, all of it or nothing."""
        for place, entry in enumerate(declared):
            known = self._entries.get(entry.name)
            twice = any(e.name == entry.name for e in declared[:place])
            if twice or (known and known.module != entry.module):
                other = entry.module if twice or not known else known.module
                raise BenchError(
                    f"{self.kind} '{entry.name}' is registered twice, by {other} and by {entry.module}. Rename one."
                )
        self._entries.update((entry.name, entry) for entry in declared)

    def _load_plugins(self) -> None:
        """Imports the entry points of other packages; a broken one is listed as broken and stops nobody else."""
        if self._plugins_loaded:
            return
        self._plugins_loaded = True
        import importlib.metadata  # a sixth of the time of a short command, and most know their names without it

        for point in importlib.metadata.entry_points(group=self.group):
            before = set(self._objects)
            try:
                point.load()
                if not set(self._objects) - before and point.name not in self._objects:
                    raise BenchError(f"{point.value} registers nothing with @register")
            except (Exception, SystemExit) as problem:  # noqa: BLE001 - a stranger's code may raise anything
                reason = f"{type(problem).__name__}: {problem}"
                log.warning("%s plug-in '%s' (%s) is broken: %s", self.kind, point.name, point.value, reason)
                if point.name not in self._entries:
                    self._entries[point.name] = Entry(point.name, "entry point", point.value, error=reason)

    def load_file(self, path: Path) -> list[str]:
        """Registers what a user's own Python file declares and returns the names. The file is not imported yet.

        Raises BenchError if the file is missing, does not parse, registers nothing, or takes a name already in use.
        """
        self._scan()
        path = path.resolve()
        if not path.is_file():
            raise BenchError(f"There is no file {path}. Give the name of a {self.kind} or the path of a Python file.")
        try:
            entries = self._read(path, str(path), "file")
        except SyntaxError as problem:
            raise BenchError(f"{path}, line {problem.lineno}: not valid Python ({problem.msg}).") from problem
        except (OSError, ValueError) as problem:
            raise BenchError(f"{path} cannot be read as Python: {problem}.") from problem
        if not entries:
            raise BenchError(f'{path} registers no {self.kind}: put @register("name", …) above its class or function.')
        self._add(entries)
        return [entry.name for entry in entries]

    # -- asking ------------------------------------------------------------------------------------------------------
    def entries(self) -> list[Entry]:
        """All entries by name, broken ones included."""
        self._scan()
        self._load_plugins()
        return [self._entries[name] for name in sorted(self._entries)]

    def entry(self, name: str) -> Entry:
        """The entry of a name. `base:variant` falls back to the entry `base:*`, then to `base`.

        Raises BenchError for an unknown name (with the nearest known ones) and for a broken plug-in.
        """
        self._scan()
        base = name.partition(":")[0]
        candidates = (name, f"{base}:*", base) if ":" in name else (name,)
        if not any(c in self._entries for c in candidates):
            self._load_plugins()
        for candidate in candidates:
            if candidate in self._entries:
                entry = self._entries[candidate]
                if entry.error:
                    raise BenchError(f"{self.kind} '{name}' ({entry.module}) is broken: {entry.error}")
                return entry
        usable = [e.name.replace(":*", ":CLASS") for e in self._entries.values() if not e.error]
        raise BenchError(f"There is no {self.kind} '{name}'.{self._suggestion(name, usable)}")

    def _suggestion(self, name: str, usable: list[str]) -> str:
        """The nearest names, those behind a wildcard included; where none is near, the list of the short ones."""
        everything = [*usable, *self._more_names()]
        hint = did_you_mean(name, everything)
        return hint if hint.startswith(" Did") else did_you_mean(name, usable)

    def load(self, name: str) -> Any:
        """The class or function behind a name, imported now. Raises BenchError if that fails."""
        entry = self.entry(name)
        if entry.name not in self._objects:
            self._origin = (entry.origin, entry.module)
            try:
                if entry.origin == "file":
                    _import_file(Path(entry.module))
                else:
                    importlib.import_module(entry.module)
            except BenchError:
                raise
            except (Exception, SystemExit) as problem:
                raise BenchError(
                    f"{self.kind} '{entry.name}' cannot be imported from {entry.module}: "
                    f"{type(problem).__name__}: {problem}"
                ) from problem
            finally:
                self._origin = ("built-in", "")
        if entry.name not in self._objects:
            raise BenchError(f"{entry.module} was imported but did not register {self.kind} '{entry.name}'.")
        return self._objects[entry.name]


def scan_source(
    text: str, module: str, origin: str, folder: Path | None = None,
    calls: Mapping[str, Callable[..., Any]] = MappingProxyType({}),
) -> list[Entry]:  # fmt: skip
    """The entries a source text declares with top-level `@register("name", …)` decorators; nothing is executed.

    folder: of the registry's package, whose files may hold literals that the decorators name. calls: what they may call
    with literals, by name.
    """
    if "register(" not in text:
        return []
    digest = hashlib.sha256(text.encode()).hexdigest()[:16] if origin == "file" else ""
    tree = ast.parse(text)
    entries, known = [], {**_constants(tree, folder), **{name: _Callable(call) for name, call in calls.items()}}
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            continue
        for call in node.decorator_list:
            if not (isinstance(call, ast.Call) and _called_name(call.func) == "register" and call.args):
                continue
            name, facts, error = "", {}, ""
            try:
                name = _literal(call.args[0], known)
                facts = {k.arg: _literal(k.value, known) for k in call.keywords if k.arg}
            except _CallError as problem:
                name, error = name or node.name, f"line {call.lineno}: {problem}"
            except (ValueError, TypeError):  # TypeError: a set or dict of what cannot be hashed
                name = name or node.name
                error = f"line {call.lineno}: the arguments of @register must be literals, or names of literals"
            shape = "class" if isinstance(node, ast.ClassDef) else "function"
            summary = _first_line(ast.get_docstring(node) or "")
            entries.append(Entry(name, origin, module, shape, summary, facts, error, digest))
    return entries


class _CallError(ValueError):
    """A call in a decorator whose arguments are not those of what it calls."""


@dataclass(frozen=True)
class _Callable:
    """A callable that decorators may name."""

    call: Callable[..., Any]


def _called(node: ast.Call, known: Mapping[str, Any]) -> Any:
    """The value of a call with literals of what a decorator may call."""
    name = _called_name(node.func)
    made = known.get(name)
    if not isinstance(made, _Callable) or any(k.arg is None for k in node.keywords):
        raise ValueError(name)
    keywords = {k.arg: _literal(k.value, known) for k in node.keywords if k.arg}
    try:
        return made.call(*(_literal(part, known) for part in node.args), **keywords)
    except TypeError as problem:
        raise _CallError(f"{ast.unparse(node)}: {problem}") from None


def _literal(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """The value of a literal that may name other literals and unpack them into a dictionary.

    Raises ValueError or TypeError for anything else.
    """
    if isinstance(node, ast.Name):
        if node.id not in known or isinstance(known[node.id], _Callable):
            raise ValueError(node.id)
        return copy.deepcopy(known[node.id])
    if isinstance(node, ast.Tuple | ast.List):
        values = [_literal(item, known) for item in node.elts]
        return tuple(values) if isinstance(node, ast.Tuple) else values
    if isinstance(node, ast.Dict):
        merged: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            merged.update(_literal(value, known) if key is None else {_literal(key, known): _literal(value, known)})
        return merged
    return _called(node, known) if isinstance(node, ast.Call) else ast.literal_eval(node)


def _constants(tree: ast.Module, folder: Path | None, deep: bool = True) -> dict[str, Any]:
    """Module-level literals by name: those of this file, and those it imports from files of the package's folder."""
    known: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and deep and folder is not None and node.module:
            names = {a.name: a.asname or a.name for a in node.names if a.name.isupper()}
            inside = node.module.removeprefix(f"wsolbench.{folder.name}.") if not node.level else node.module
            path = folder.joinpath(*inside.split(".")).with_suffix(".py")
            if names and node.level <= 1 and path.is_file():
                theirs = _constants(ast.parse(path.read_text(encoding="utf-8")), folder, deep=False)
                known.update({own: theirs[name] for name, own in names.items() if name in theirs})
        elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            with contextlib.suppress(ValueError, TypeError):
                known[node.targets[0].id] = _literal(node.value, known)
    return known


def _import_file(path: Path) -> None:
    name = f"wsolbench_file_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise BenchError(f"{path} cannot be imported as Python; its name must end in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _called_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _shape(target: object) -> str:
    return "class" if isinstance(target, type) else "function"


def _same_place(known: object, target: object) -> bool:
    """False when two definitions of one module take the same name; True for the first, and for a module run again."""
    return known is None or getattr(known, "__qualname__", "") == getattr(target, "__qualname__", "")


def _first_line(docstring: str) -> str:
    return docstring.strip().partition("\n")[0]
