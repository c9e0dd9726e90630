"""What the small commands share: one line for bad input, exit code 2, numbers as JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from transfer_nas.errors import InputError, close_matches
from transfer_nas.ranks import expected_rank

OK, BAD_INPUT = 0, 2


class Parser(argparse.ArgumentParser):
    """A parser that takes flags with underscores or hyphens and raises `InputError`."""

    def error(self, message: str) -> NoReturn:
        """Raise the complaint instead of ending the process."""
        if ": must be " in message:  # of a `Range`
            raise InputError(message.removeprefix("argument ").replace(": must be ", " must be "))
        unknown = message.partition("unrecognized arguments: ")[2].split()
        flags = [flag.partition("=")[0] for flag in unknown if flag.startswith("--")]
        meant = [close for flag in flags for close in close_matches(flag, _flags(self))]
        hint = f"did you mean {' or '.join(meant)}? " if meant else ""
        raise InputError(f"{message} ({hint}--help lists the flags)")

    def print_help(self, file: Any = None) -> None:
        """Print the help, once for all ranks."""
        if expected_rank() == 0:
            super().print_help(file)

    def parse(self, arguments: Sequence[str] | None) -> argparse.Namespace:
        """Return the values of the flags; None: of the command line."""
        given = sys.argv[1:] if arguments is None else arguments
        return self.parse_args([_underscores(argument) for argument in given])


def run(name: str, command: Callable[[], int]) -> int:
    """Return a command's exit code; bad input becomes one line on standard error and 2."""
    try:
        return command()
    except InputError as error:
        if expected_rank() == 0:
            print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        return BAD_INPUT


def print_json(values: Mapping[str, Any]) -> None:
    """Print what a command found for programs to read."""
    print(json.dumps(values, indent=2))


def _flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield all flags of a parser, and of its commands."""
    for action in parser._actions:
        yield from (flag for flag in action.option_strings if flag.startswith("--"))
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _flags(command)


def _underscores(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument[2:].partition("=")
    return "--" + flag.replace("-", "_") + equals + value
