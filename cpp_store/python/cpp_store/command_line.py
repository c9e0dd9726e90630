"""What all commands do alike: flags, complaints, streams and exit codes.

A command is a function that returns an exit code. `run` calls it, and makes one line, or silence,
of whatever is wrong with what it was given and with where its output goes:

* bad input (`InputError`), an error of the store, a named file that cannot be used, a package of an
  extra that is not installed: a line, 2;
* standard output that cannot be written, for instance for want of room: a line, 1;
* a reader of standard output that has gone (``| head``): silence, 141;
* Ctrl-C: silence, 130.

Standard streams that are closed are as ``/dev/null``, and characters that they cannot encode are
written in ASCII. Where a launcher started several processes, rank 0 alone complains. Other
exceptions are defects of the program and keep their traceback.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import difflib
import errno
import io
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TextIO

from cpp_store import extras

OK, FAILED, BAD_INPUT = 0, 1, 2
INTERRUPTED = 128 + signal.SIGINT
NOBODY_READS = 128 + signal.SIGPIPE

RANK_VARIABLES = ("PMI_RANK", "PMIX_RANK", "OMPI_COMM_WORLD_RANK")

_IN_ASCII = {"·": "-", "–": "-", "—": "-", "±": "+-", "…": "...", "×": "x", "“": '"', "”": '"'}


class InputError(ValueError):
    """What the user has to change: a flag, a file, an environment variable."""


class OutputLost(Exception):
    """Standard output cannot be written. No OSError, which would be taken for one of a file.

    Parameters
    ----------
    cause
        What the system says.
    """

    def __init__(self, cause: OSError) -> None:
        self.cause = cause
        super().__init__(f"cannot write to standard output: {cause.strerror}")

    @property
    def nobody_reads(self) -> bool:
        """Whether the reader has gone, as that of ``| head`` does."""
        return self.cause.errno == errno.EPIPE


def run(name: str, command: Callable[[], int]) -> int:
    """Return a command's exit code; see the module.

    Parameters
    ----------
    name
        What to call it in complaints.
    command
        Parses its arguments, works, prints.
    """
    with streams():
        try:
            try:
                code = command()
            except SystemExit:  # --help
                sys.stdout.flush()
                raise
            sys.stdout.flush()
            return code
        except (Exception, KeyboardInterrupt) as error:
            found = explained(error)
            if found is None:
                raise
            code, line = found
            if line and expected_rank() == 0:
                complain(name, line)
            return code


def explained(error: BaseException) -> tuple[int, str] | None:
    """Return the exit code that an exception makes, and the line to print, which may be empty.

    None for what is a defect of the program rather than of its surroundings.
    """
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, ""
    if isinstance(error, OutputLost):
        return (NOBODY_READS, "") if error.nobody_reads else (FAILED, str(error))
    if isinstance(error, InputError) or _is_of_the_store(error):
        return BAD_INPUT, str(error)
    if isinstance(error, OSError):
        why = error.strerror or str(error) or type(error).__name__
        if error.filename is None:
            return FAILED, why
        return BAD_INPUT, f"{os.fsdecode(error.filename)}: {why}"
    if isinstance(error, ModuleNotFoundError) and (line := extras.missing(error)) is not None:
        return BAD_INPUT, line
    return None


def _is_of_the_store(error: BaseException) -> bool:
    core = sys.modules.get("cpp_store._core")  # nobody shall wait for it who does not need it
    return core is not None and isinstance(error, core.StoreError)


def complain(name: str, line: str) -> None:
    """Say on standard error, in one line, what is wrong; silence if that cannot be written."""
    stream = sys.stderr if sys.stderr is not None else open_stream(os.dup(2), forgives=True)
    with contextlib.suppress(OSError):
        print(f"{name}: error: {' '.join(line.split())}", file=stream, flush=True)


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are exceptions, for `run`.

    Flags may be spelled with underscores or with hyphens, but not cut short; a flag that is not
    known is answered with those that it resembles.
    """

    complaint: type[Exception] = InputError
    """What is raised; a package may have a class of its own."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **{"allow_abbrev": False} | named)

    def error(self, message: str) -> NoReturn:
        """Raise the complaint instead of ending the process."""
        if ": must be " in message:  # of `ranges.Range`: "argument --port: must be at most …"
            raise self.complaint(message.removeprefix("argument ").replace(": must", " must", 1))
        raise self.complaint(f"{message} ({self.prog} --help lists the flags)")

    def print_help(self, file: Any = None) -> None:
        """Print the help, once for all ranks."""
        if expected_rank() == 0:
            super().print_help(file)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Return the values of the flags; None: of the command line."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._resembling(unknown)}")
        return found

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Take hyphens for underscores; otherwise as the class above it, for `parse_args`."""
        given = list(sys.argv[1:] if args is None else args)
        end = given.index("--") if "--" in given else len(given)
        spelled = [_underscored(argument) for argument in given[:end]] + given[end:]
        return super().parse_known_args(spelled, namespace)

    def _resembling(self, unknown: Sequence[str]) -> str:
        flag = next((each for each in unknown if each.startswith("--")), "").partition("=")[0]
        close = difflib.get_close_matches(flag, sorted(self._flags()), n=2, cutoff=0.6)
        return f"; did you mean {' or '.join(close)}?" if flag and close else ""

    def _flags(self) -> set[str]:
        """Return the flags of this parser and of its commands."""
        flags = {flag for flag in self._option_string_actions if flag.startswith("--")}
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                flags.update(*(parser._flags() for parser in action.choices.values()))
        return flags


def print_json(value: object) -> None:
    """Print something for programs: JSON, in which NaN and infinities are texts."""
    print(json.dumps(_finite(value), indent=2, allow_nan=False))


def expected_rank() -> int:
    """Return the rank that the launcher's environment announces; 0 if there is none."""
    for name in RANK_VARIABLES:
        if os.environ.get(name, "").isdecimal():
            return int(os.environ[name])
    return 0


@contextlib.contextmanager
def streams() -> Iterator[None]:
    """Let standard output and error take every text, and fail as this module says, meanwhile."""
    # Or the next files to be opened become standard output and error.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    out, err = sys.stdout, sys.stderr
    if out is sys.__stdout__:
        sys.stdout = open_stream(1, out)
    else:  # a notebook's, a test's
        _reconfigure(out)
    if err is sys.__stderr__:
        sys.stderr = open_stream(2, err, forgives=True)
    else:
        _reconfigure(err)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, OutputLost, ValueError):  # ValueError: it is closed
                stream.flush()
        sys.stdout, sys.stderr = out, err


def open_stream(descriptor: int, like: TextIO | None = None, *, forgives: bool = False) -> TextIO:
    """Return a stream that can encode every text.

    Parameters
    ----------
    descriptor
        Where it writes to; closed with the stream unless it is standard output or error.
    like
        Whose encoding and buffering it has; None: those of standard error.
    forgives
        Whether what cannot be written is dropped without a word, rather than raised: for progress
        and complaints, which nobody may see but which must not end the work.
    """
    raw = _Descriptor(descriptor, forgives)
    if isinstance(like, io.TextIOWrapper):
        encoding, lines, through = like.encoding, like.line_buffering, like.write_through
    else:
        encoding, lines, through = getattr(sys.__stderr__, "encoding", "utf-8"), True, False
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=encoding,
        errors=_ERRORS,
        line_buffering=lines,
        write_through=through,
    )


class _Descriptor(io.FileIO):
    """A file that says once that it cannot be written, and then takes everything."""

    def __init__(self, descriptor: int, forgives: bool) -> None:
        super().__init__(descriptor, "w", closefd=descriptor > 2)
        self._forgives = forgives
        self._lost = False

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        if self._lost:
            return size
        try:
            written: int | None = super().write(data)
            return size if written is None else written
        except OSError as cause:
            if self._forgives:
                return size  # the next may find room
            self._lost = True
            raise OutputLost(cause) from cause


def _reconfigure(stream: TextIO) -> None:
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=_ERRORS)


def _in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    """Encode what an encoding lacks; the bytes of a file's name as they were."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start]
    if 0xDC80 <= ord(wrong) <= 0xDCFF:  # as `os.fsdecode` makes it of a byte that is not UTF-8
        return bytes([ord(wrong) - 0xDC00]), error.start + 1
    said = _IN_ASCII.get(wrong, wrong.encode("ascii", "backslashreplace").decode())
    return said, error.start + 1


_ERRORS = "cpp_store.in_ascii"
codecs.register_error(_ERRORS, _in_ascii)


def _finite(value: object) -> object:
    """Return the value with numbers that JSON cannot say as text: "nan", "inf"."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _underscored(argument: str) -> str:
    if not argument.startswith("--"):
        return argument
    flag, equals, value = argument[2:].partition("=")
    return "--" + flag.replace("-", "_") + equals + value
