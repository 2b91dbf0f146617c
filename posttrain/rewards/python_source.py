"""A user's function by its source: where it is and how it wants to be called; nothing is run."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import hashlib
import inspect
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

ACCEPTED = (
    "write def score(completion, reference, *, prompt, <column>), "
    "or TRL's def score(completions, <column>, **kwargs)"
)
OURS = ("completion", "completions", "prompt", "prompts", "reference")
"""Arguments that are not columns of a data row."""
# TRL's trainer passes these; here there is no trainer.
_TRL_ONLY = ("completion_ids", "trainer_state", "log_extra", "log_metric", "environments")
_TARGET = re.compile(r"(?P<place>.+\.py|[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*)")
_LIST_OF_TEXTS = re.compile(r"(?:\w+\.)?(?:list|List|Sequence|Iterable)\[str\]")


class BadFunction(ValueError):
    """A function cannot be found or called; `suggestion` is the nearest name that exists."""

    def __init__(self, message: str, suggestion: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.suggestion = suggestion


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """Signature of a function, as far as its caller needs it."""

    is_batch: bool
    """Whether it takes all completions of a prompt, as `completions`."""
    handed: str
    """Parameter of the completion or completions."""
    by_name: bool
    """Whether the one completion is passed as `completion=`, rather than first."""
    as_texts: bool
    """Whether `completions` are texts, rather than chats of one message as TRL has them."""
    names: Sequence[str]
    """Parameters that are passed by name."""
    required: Sequence[str]
    """Parameters that a data row must have a column for."""
    takes_any: bool
    """Whether it has `**kwargs`."""

    def takes(self, name: str) -> bool:
        """Return whether an argument of that name can be passed besides the completion."""
        return name != self.handed and (self.takes_any or name in self.names)

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The columns of a data row that it reads; None = all."""
        return None if self.takes_any else tuple(n for n in self.names if n not in OURS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Location of a function."""

    target: str
    """`file.py:name` with the file's whole path, or `package.module:name`."""
    files: list[Path]
    """The function's own file, then those that it imports from beside it."""
    form: Form | None
    """None where only running the file would tell."""


def split_target(target: str) -> tuple[str, str]:
    """Split `file.py:name` or `package.module:name`; ValueError for anything else.

    >>> split_target("rewards/mine.py:score")
    ('rewards/mine.py', 'score')
    """
    found = _TARGET.fullmatch(target)
    if found is None:
        raise ValueError(f"write file.py:name or package.module:name, not {target!r}")
    return found["place"], found["name"]


def form_of(signature: inspect.Signature) -> Form:
    """Return how a function is called; BadFunction where it cannot be."""
    parameters = list(signature.parameters.values())
    kinds = inspect.Parameter
    is_batch = "completions" in signature.parameters
    first = parameters[0] if parameters else None
    by_name = "completion" in signature.parameters and not (
        first is not None and first.name == "completion" and first.kind is kinds.POSITIONAL_ONLY
    )
    if not is_batch and not by_name:
        positional = (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD, kinds.VAR_POSITIONAL)
        if first is None or first.kind not in positional:
            raise BadFunction(f"takes no completion: {ACCEPTED}")
    handed = "completions" if is_batch else "completion" if by_name else first and first.name
    others = [p for p in parameters if p.name != handed]
    unnamed = [p.name for p in others if p.kind is kinds.POSITIONAL_ONLY and p.default is p.empty]
    if unnamed:
        raise BadFunction(f"{unnamed[0]} cannot be passed by name: {ACCEPTED}")
    named = [p for p in others if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
    required = [p.name for p in named if p.default is p.empty]
    if lacking := [name for name in required if name in _TRL_ONLY]:
        raise BadFunction(f"needs {lacking[0]}, which only TRL's trainer has: give it a default")
    annotation = signature.parameters["completions"].annotation if is_batch else None
    shown = annotation if isinstance(annotation, str) else str(annotation)
    assert handed
    return Form(
        is_batch=is_batch,
        handed=handed,
        by_name=by_name and not is_batch,
        as_texts=_LIST_OF_TEXTS.fullmatch(shown) is not None,
        names=[p.name for p in named if p.name not in _TRL_ONLY],
        required=[name for name in required if name not in OURS],
        takes_any=any(p.kind is kinds.VAR_KEYWORD for p in parameters),
    )


def find_function(target: str, folder: Path) -> Source:
    """Find a function without importing anything; a relative file starts at `folder`.

    Raises BadFunction for a file, module or function that does not exist and for a signature that
    cannot be called.
    """
    place, name = split_target(target)
    if not place.endswith(".py"):
        return dataclasses.replace(_in_module(place, name, folder), target=target)
    file = Path(os.path.abspath(folder / Path(place).expanduser()))
    if not file.is_file():
        beside = [path.name for path in file.parent.glob("*.py")] if file.parent.is_dir() else []
        near = difflib.get_close_matches(file.name, beside, n=1)
        suggestion = str(Path(place).with_name(near[0])) + f":{name}" if near else None
        raise BadFunction(f"no such file: {file}", suggestion)
    form = _form(_statement(_tree(file), file, name, place), file, name)
    files: list[Path] = []
    _add_imported(file.resolve(), files)
    return Source(target=f"{file}:{name}", files=files, form=form)


def columns_read(target: str) -> Any:
    """Return what decides which columns of a data row a function gets, as JSON.

    They follow from its parameters; of one without a plain definition, from its whole file.
    """
    source = find_function(target, Path())
    if source.form is None:
        return hashlib.sha256(source.files[0].read_bytes()).hexdigest()
    return [source.form.columns, list(source.form.required)]


def _in_module(module: str, name: str, folder: Path) -> Source:
    """Find the file of the module in which a name is defined, re-exports followed."""
    file = _module_file(module, folder)
    node = _statement(_tree(file), file, name, module)
    if isinstance(node, ast.ImportFrom) and name in (a.asname or a.name for a in node.names):
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        for _ in range(node.level - 1):
            package = package.rpartition(".")[0]
        parts = [package if node.level else "", node.module or ""]
        original = next(a.name for a in node.names if (a.asname or a.name) == name)
        return _in_module(".".join(filter(None, parts)), original, folder)
    target, form = f"{module}:{name}", _form(node, file, name)
    return Source(target=target, files=[file.resolve()], form=form)


def _statement(tree: ast.Module, file: Path, name: str, place: str) -> ast.stmt:
    """Return the statement that binds a name; BadFunction if that is no function."""
    bound = list(_names(tree.body))
    found = [node for own, node in bound if own in (name, "*")]
    if not found:
        known = dict.fromkeys(own for own, node in bound if isinstance(node, _FUNCTIONS))
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        has = f"; it has {', '.join(known)}" if known else ""
        suggestion = f"{place}:{near[0]}" if near else None
        raise BadFunction(f"{file.name} has no function {name}{has}", suggestion)
    if isinstance(found[-1], ast.ClassDef):
        raise BadFunction(f"{name} is a class: name a function, or an instance with __call__")
    return found[-1]


def _form(node: ast.stmt, file: Path, name: str) -> Form | None:
    """Return the form of a plain definition; BadFunction if it cannot be called."""
    if not isinstance(node, _FUNCTIONS) or node.decorator_list:
        return None
    try:
        return form_of(_signature(node.args))
    except BadFunction as error:
        raise BadFunction(f"{file.name}:{node.lineno}: {name} {error.message}") from None


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def _tree(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise BadFunction(f"{file.name}:{error.lineno}: {error.msg}") from None
    except (OSError, ValueError) as error:
        raise BadFunction(f"{file.name} cannot be read: {error}") from None


def _module_file(module: str, folder: Path) -> Path:
    """Return the source file of a module; its packages are not imported."""
    places: Sequence[str] | None = None
    origin: str | None = None
    for depth in range(1, module.count(".") + 2):
        part = ".".join(module.split(".")[:depth])
        found = _find_package(part) if places is None else PathFinder.find_spec(part, places)
        last = depth == module.count(".") + 1
        if found is None or (last and found.origin is None):
            beside = folder.joinpath(*module.split(".")).with_suffix(".py")
            meant = f"{beside.relative_to(folder)}:..." if beside.is_file() else None
            raise BadFunction(f"no module {module} can be imported here", meant)
        places, origin = found.submodule_search_locations, found.origin
    assert origin is not None
    return Path(origin)


def _find_package(name: str) -> ModuleSpec | None:
    """Find a module as the worker would, which has no working directory on its path."""
    here = {"", str(Path.cwd())}
    for finder in sys.meta_path:
        on = [place for place in sys.path if place not in here] if finder is PathFinder else None
        if (found := finder.find_spec(name, on)) is not None:
            return found
    return None


def _add_imported(file: Path, files: list[Path]) -> None:
    """Add a file and the modules beside it that it imports, and theirs."""
    if file in files:
        return
    files.append(file)
    root = files[0].parent
    for node in ast.walk(_tree(file)):
        for path in _imported_paths(node, file, root):
            packages = [parent / "__init__.py" for parent in path.parents if root in parent.parents]
            for source in (path.with_suffix(".py"), path / "__init__.py", *packages):
                if source.is_file():
                    _add_imported(source.resolve(), files)


def _imported_paths(node: ast.AST, file: Path, root: Path) -> Iterator[Path]:
    """Yield what an import may mean, as paths without suffix."""
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield root.joinpath(*alias.name.split("."))
    elif isinstance(node, ast.ImportFrom):
        base = file.parents[node.level - 1] if node.level else root
        base = base.joinpath(*(node.module or "").split("."))
        yield base
        for alias in node.names:
            if alias.name != "*":
                yield base / alias.name


def _names(body: Sequence[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """Yield every name that a module binds, with the statement that binds it."""
    for node in body:
        if isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            yield node.name, node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name.partition(".")[0], node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                for one in ast.walk(target):
                    if isinstance(one, ast.Name):
                        yield one.id, node
        else:
            for block in ("body", "orelse", "finalbody"):
                yield from _names(getattr(node, block, []))
            for handler in getattr(node, "handlers", []):
                yield from _names(handler.body)


def _signature(arguments: ast.arguments) -> inspect.Signature:
    """Return a definition's signature; a default stands for any value."""
    kinds = inspect.Parameter
    positional = [*arguments.posonlyargs, *arguments.args]
    num_required = len(positional) - len(arguments.defaults)
    parameters: list[inspect.Parameter] = []

    def add(argument: ast.arg, kind: Any, *, required: bool) -> None:
        annotation = ast.unparse(argument.annotation) if argument.annotation else kinds.empty
        default = kinds.empty if required else None
        parameters.append(
            inspect.Parameter(argument.arg, kind, default=default, annotation=annotation)
        )

    for number, argument in enumerate(positional):
        only = number < len(arguments.posonlyargs)
        kind = kinds.POSITIONAL_ONLY if only else kinds.POSITIONAL_OR_KEYWORD
        add(argument, kind, required=number < num_required)
    if arguments.vararg:
        add(arguments.vararg, kinds.VAR_POSITIONAL, required=True)
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        add(argument, kinds.KEYWORD_ONLY, required=default is None)
    if arguments.kwarg:
        add(arguments.kwarg, kinds.VAR_KEYWORD, required=True)
    return inspect.Signature(parameters)
