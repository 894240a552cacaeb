"""From words on a command line to a recipe, and from a recipe to JSON and back. Shared by the tools beside it.

A modality is a package ``partwhole.<name>`` with a module ``tasks``, or any importable module given by its dotted name.
Its ``TASKS`` maps names to frozen dataclasses; the optional ``RECIPES`` maps task names to named instances of them.
"""

import argparse
import ast
import collections.abc
import dataclasses
import difflib
import errno
import importlib
import importlib.util
import inspect
import io
import pkgutil
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)  # of the machine, not of the code


class Usage(Exception):
    """The command asks for something that is not there; the message is for the person who typed it."""


@dataclass(frozen=True)
class Choice:
    """What a command chose."""

    modality: str
    task: str
    name: str | None  # of the recipe the fields start from
    recipe: Any
    options: argparse.Namespace  # the tool's own options


# ------------------------------------------------------------------ choosing


def choose(argv: Sequence[str], parser: argparse.ArgumentParser) -> Choice:
    """Read ``argv``; print help and exit where it asks for help; Usage where it names what is not there."""
    parser.add_argument("--modality", metavar="M")
    parser.add_argument("--task", metavar="T")
    parser.add_argument("--recipe", metavar="R")
    options, rest = parser.parse_known_args(list(argv))
    wants_help = bool({"-h", "--help"} & set(rest))
    if options.modality is None:
        refuse_misspelt(rest, parser)
        text = f"choose a modality, with --modality:\n{_listed(modalities())}\nor any module that has TASKS."
        return _help_or_usage(wants_help, parser, text)
    module = load(options.modality)
    tasks, recipes = module.TASKS, getattr(module, "RECIPES", {})
    if options.task is None:
        refuse_misspelt(rest, parser)
        about = {name: _first_line(task) for name, task in tasks.items()}
        text = f"choose a task of {options.modality}, with --task:\n{_listed(about)}{_recipes_listed(recipes)}"
        return _help_or_usage(wants_help, parser, text)
    task = tasks[nearest("task", options.task, tasks, options.modality)]
    refuse_misspelt(rest, parser, {f.name for f in dataclasses.fields(task)})
    named = recipes.get(options.task, {})
    default = None
    if options.recipe is not None:
        default = named[nearest("recipe", options.recipe, named, f"task {options.task}")]
    about = f"{inspect.getdoc(task) or ''}\n\nOptions of this tool:\n{_own(parser)}"
    if named:
        about += f"\n\nRecipes to start from, with --recipe: {', '.join(named)}"
    recipe = parse(task, rest, default, f"{parser.prog} --modality {options.modality} --task {options.task}", about)
    return Choice(options.modality, options.task, options.recipe, recipe, options)


def refuse_misspelt(words: Iterable[str], parser: argparse.ArgumentParser, fields: Iterable[str] = ()) -> None:
    """Usage for a word that is nearly an option of the tool, and no field of the recipe."""
    own = [s for action in parser._actions for s in action.option_strings]
    for word in words:
        name = word.split("=")[0]
        near = difflib.get_close_matches(name, own, 1, 0.8)
        if near and name.lstrip("-").split(".")[0].replace("-", "_") not in set(fields):
            raise Usage(f"no option {name}: did you mean {near[0]}?")


def parse(task: type, words: Sequence[str], default: Any, prog: str, about: str) -> Any:
    """The recipe that ``words`` describe, starting from ``default``; a wrong field exits with the nearest ones."""
    try:
        return tyro.cli(task, args=list(words), default=default or tyro.MISSING_NONPROP, prog=prog, description=about)
    except ValueError as error:  # a recipe that refuses its own fields
        raise Usage(str(error)) from error


def modalities() -> dict[str, str]:
    """Packages of the partwhole namespace that have tasks, with the first line of their documentation."""
    import partwhole

    found = {}
    for package in sorted(m.name for m in pkgutil.iter_modules(partwhole.__path__) if m.ispkg):
        spec = importlib.util.find_spec(f"partwhole.{package}.tasks")
        if spec is not None and spec.origin is not None:
            document = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
            found[package] = document.partition("\n")[0]
    return found


def load(modality: str) -> types.ModuleType:
    """The module of tasks of a modality, or of a dotted name."""
    name = modality if "." in modality else f"partwhole.{modality}.tasks"
    if "." not in modality:
        nearest("modality", modality, modalities(), "partwhole")
    elif not _exists(name):
        raise Usage(f"no module {name!r}: --modality takes {', '.join(modalities())} or an importable dotted name")
    module = importlib.import_module(name)
    if not isinstance(getattr(module, "TASKS", None), Mapping):
        raise Usage(f"{name} has no dict TASKS of recipes by name")
    return module


def nearest(kind: str, name: str, known: Iterable[str], where: str) -> str:
    """``name`` if it is known; else Usage that names the nearest and all."""
    known = list(known)
    if name in known:
        return name
    near = difflib.get_close_matches(name, known, 3, 0.5)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    raise Usage(f"no {kind} {name!r} in {where}.{hint} There are: {', '.join(known) or 'none'}")


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _first_line(task: Any) -> str:
    return (inspect.getdoc(task) or "").partition("\n")[0]


def _listed(about: Mapping[str, str]) -> str:
    width = max(map(len, about), default=0)
    return "\n".join(f"  {name:<{width}}  {text}" for name, text in about.items()) or "  (none is installed)"


def _recipes_listed(recipes: Mapping[str, Mapping[str, Any]]) -> str:
    lines = "\n".join(f"  {task}: {', '.join(named)}" for task, named in recipes.items() if named)
    return f"\nRecipes to start from, with --recipe:\n{lines}" if lines else ""


def _own(parser: argparse.ArgumentParser) -> str:
    lines = {}
    for action in parser._actions:
        if action.help:
            lines[" ".join([*action.option_strings, str(action.metavar or "")]).strip()] = action.help
    return _listed(lines)


def _help_or_usage(wanted: bool, parser: argparse.ArgumentParser, text: str) -> typing.NoReturn:
    if not wanted:
        raise Usage(text)
    print(f"{parser.description}\n\n{text[0].upper()}{text[1:]}\n\nOptions:\n{_own(parser)}")
    raise SystemExit(0)


# ------------------------------------------------------------------ JSON


def to_json(value: Any, *, decisive: bool = False) -> Any:
    """A recipe as plain JSON, paths made absolute; ``decisive`` leaves out fields that do not change the training.

    These are the ones that a dataclass names in a class attribute ``incidental``.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        skip = getattr(value, "incidental", ()) if decisive else ()
        names = [f.name for f in dataclasses.fields(value) if f.init and f.name not in skip]
        return {name: to_json(getattr(value, name), decisive=decisive) for name in names}
    if isinstance(value, Path):
        return str(value.absolute())
    if isinstance(value, Mapping):
        return {str(k): to_json(v, decisive=decisive) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_json(v, decisive=decisive) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a recipe holds plain values, paths and dataclasses, and this is a {type(value).__name__}")


def from_json(kind: Any, value: Any, where: str = "recipe") -> Any:
    """The ``kind`` that ``to_json`` wrote. ValueError, naming the field, where it does not fit."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return from_json(arguments[0], value, where)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {value!r}, and should be the fields of {kind}")
        hints = typing.get_type_hints(kind, include_extras=True)
        known = {f.name for f in dataclasses.fields(kind) if f.init}
        unknown = sorted(set(value) - known)
        if unknown:
            raise ValueError(f"{where} has fields that {typing.cast(type, kind).__name__} lacks: {', '.join(unknown)}")
        return typing.cast(type, kind)(**{k: from_json(hints[k], v, f"{where}.{k}") for k, v in value.items()})
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return from_json(option, value, where)
            except (ValueError, TypeError):
                continue
        raise ValueError(f"{where} is {value!r}, and should be one of {kind}")
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError(f"{where} is {value!r}, and should be one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        if not isinstance(value, list) or len(value) != len(arguments):
            raise ValueError(f"{where} is {value!r}, and should have {len(arguments)} values")
        return tuple(from_json(a, v, f"{where}[{i}]") for i, (a, v) in enumerate(zip(arguments, value, strict=True)))
    if origin in (tuple, list, set, frozenset) or origin in (collections.abc.Sequence, collections.abc.Iterable):
        if not isinstance(value, list):
            raise ValueError(f"{where} is {value!r}, and should be a list")
        items = [from_json(arguments[0], v, f"{where}[{i}]") for i, v in enumerate(value)]
        return {list: list, set: set, frozenset: frozenset}.get(origin, tuple)(items)
    if origin in (dict, collections.abc.Mapping):
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {value!r}, and should be an object")
        return {from_json(arguments[0], k, where): from_json(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is Any:
        return value
    if kind is Path:
        if not isinstance(value, str):
            raise ValueError(f"{where} is {value!r}, and should be a path")
        return Path(value)
    if kind is None or kind is type(None):
        kind = type(None)
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        raise ValueError(f"{where} is {value!r}, and should be {getattr(kind, '__name__', kind)}")
    return value


# ------------------------------------------------------------------ calling


def call(function: Callable[..., Any], *arguments: Any, **offered: Any) -> Any:
    """``function`` with those of the ``offered`` keywords that it takes."""
    takes = inspect.signature(function).parameters
    return function(*arguments, **{k: v for k, v in offered.items() if k in takes})


def guarded(main: Callable[[], int]) -> int:
    """Run a tool: what a person can put right is one message and exit code 2 (1 once work has begun), no traceback.

    That is Usage, Interrupted (128 + signal), and ValueError or OSError raised on purpose in partwhole's own code.
    """
    from partwhole.core.data import BadSample
    from partwhole.core.doctor import Collapsed
    from partwhole.core.files import NotSaved
    from partwhole.core.fit import NonFinite
    from partwhole.core.signals import Interrupted, is_sigterm

    name = Path(sys.argv[0]).name
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    try:
        return main()
    except Usage as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except Interrupted as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 128 + error.signal
    except KeyboardInterrupt as error:
        print(f"{name}: stopped", file=sys.stderr)
        return 143 if is_sigterm(error) else 130
    except BadSample as error:
        if "--traceback" in sys.argv or not isinstance(error.__cause__, ValueError | OSError):
            raise
        print(f"{name}: {error}\n(--traceback shows where this was noticed)", file=sys.stderr)
        return 1
    except (Collapsed, NonFinite, NotSaved) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        module = frame.tb_frame.f_globals.get("__name__", "") if frame is not None else ""
        place = isinstance(error, OSError) and error.errno in PLACE
        if "--traceback" in sys.argv or not (place or module.startswith("partwhole.")):
            raise
        print(f"{name}: {error}\n(--traceback shows where this was noticed)", file=sys.stderr)
        return 2
