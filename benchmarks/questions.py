"""Finds the questions: the scripts beside this file that say ``QUESTION = figures.Question(…)``."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpp_store.command_line import InputError
from figures import Question, Targets

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Script:
    """A script that answers a question.

    Attributes
    ----------
    name
        What the user calls it: the file's name without ``.py`` (and without ``bench_``, too).
    path
        The file.
    asks
        The question, as the first line of its docstring puts it.
    about
        What the script says of it.
    targets
        What its figures ought to be; empty if they are not literals.
    """

    name: str
    path: Path
    asks: str
    about: Question
    targets: Targets


def find(directory: Path = HERE) -> list[Script]:
    """Return all questions, by name. Imports none of the scripts."""
    scripts = []
    for path in sorted(directory.glob("*.py")):
        tree = ast.parse(path.read_text(), str(path))
        about = _assigned(tree, "QUESTION")
        if about is not None:
            doc = (ast.get_docstring(tree) or path.stem).splitlines()[0]
            targets = _assigned(tree, "TARGETS") or {}
            scripts.append(Script(path.stem, path, doc, about, targets))
    return scripts


def choose(scripts: list[Script], names: list[str]) -> list[Script]:
    """Return the scripts that are named, or all. ValueError, naming near misses, for any other."""
    known = {script.name: script for script in scripts}
    known |= {script.name.removeprefix("bench_"): script for script in scripts}
    unknown = [name for name in names if name not in known]
    if unknown:
        have = ", ".join(script.name for script in scripts)
        raise InputError(f"no question is called {unknown[0]!r}; there are: {have}")
    return [known[name] for name in dict.fromkeys(names)] if names else scripts


def _assigned(tree: ast.Module, name: str) -> Any:
    """Return what a module assigns to a name; None if it does not.

    ValueError, which gives the line, if that is neither a literal nor `Question` of literals.
    """
    for statement in tree.body:
        if isinstance(statement, ast.Assign):
            targets = statement.targets
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets = [statement.target]
        else:
            continue
        if not any(isinstance(target, ast.Name) and target.id == name for target in targets):
            continue
        value = statement.value
        if isinstance(value, ast.Call):
            return Question(**{each.arg: ast.literal_eval(each.value) for each in value.keywords})
        return ast.literal_eval(value)
    return None
