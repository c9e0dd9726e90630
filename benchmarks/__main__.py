"""``python -m benchmarks``: list the questions, run them, compare two runs."""

from __future__ import annotations

import argparse
import datetime
import json
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import comparing
import figures
import machine
import page
import questions
from cpp_store.command_line import InputError, Parser
from cpp_store.ranges import Range
from questions import Script

from cpp_store import command_line

ROOT = Path(__file__).resolve().parent.parent
FORMAT, VERSION = "transfer-nas-benchmarks", 1
LONGEST = 3600  # seconds that one script may take before it is given up


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0, 1 if a question failed, 2 for bad input."""
    return command_line.run("benchmarks", lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    given = _parser().parse_args(arguments)
    code: int = given.command(given)
    return code


def list_questions(given: argparse.Namespace) -> int:
    """Print each question, what it compares and how long it takes."""
    scripts = questions.find()
    for script in scripts:
        print(f"{script.name}  ({_time(script, False)}, --quick {_time(script, True)})")
        print(f"    {script.asks}\n    Compares {script.about.compares}.")
    whole, quick = (sum(_seconds(script, quick) for script in scripts) for quick in (False, True))
    print(f"\nAll: {whole / 60:.0f} min, --quick {quick / 60:.1f} min.")
    print("python -m benchmarks run [NAME…] [--quick]; compare A.json B.json")
    return 0


def run(given: argparse.Namespace) -> int:
    """Run questions one after the other; write the JSON file and the page."""
    scripts = questions.choose(questions.find(), given.names)
    directory = Path(given.output or f"runs/benchmarks-{time.strftime('%Y%m%d-%H%M%S')}")
    directory.mkdir(parents=True, exist_ok=True)
    print("The machine:", end=" ", flush=True)
    facts = machine.facts()
    print(
        f"{facts['cores']} cores, copies {facts['copy_gb_per_s']:g} GB/s, "
        f"TCP {facts['tcp_stream_gb_per_s']:g} GB/s, load {facts['load_average']:.1f}"
    )
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "quick": given.quick,
        "repeat": given.repeat,
        "machine": facts,
        "questions": {},
    }
    begin = time.perf_counter()
    for number, script in enumerate(scripts, 1):
        about = f"about {_time(script, given.quick)}" + (f" x {given.repeat}" * (given.repeat > 1))
        print(f"[{number}/{len(scripts)}] {script.name} ({about}) … ", end="", flush=True)
        answer = _answer(script, directory, given.quick, given.repeat)
        print(_outcome(answer, directory / f"{script.name}.log"), flush=True)
        document["questions"][script.name] = answer
        # Written after each, so that a run that is broken off keeps what it has.
        (directory / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    page.write(directory / "report.html", document)
    print(f"{time.perf_counter() - begin:.0f} s; {directory}/results.json, report.html")
    return 1 if any("error" in answer for answer in document["questions"].values()) else 0


def compare(given: argparse.Namespace) -> int:
    """Print what changed between two runs beyond noise."""
    comparing.show(_load(given.before), _load(given.after), given.noise)
    return 0


def draw(given: argparse.Namespace) -> int:
    """Write the page of a results file again."""
    page.write(Path(given.output), _load(given.file))
    return 0


def _answer(script: Script, directory: Path, quick: bool, repeat: int) -> dict[str, Any]:
    """Run a script `repeat` times; return its figures, or what went wrong."""
    answer: dict[str, Any] = {
        "asks": script.asks,
        "compares": script.about.compares,
        "plots": dict(script.about.plots),
        "targets": dict(script.targets),
        "missing": {},
        "results": {},
        "samples": {},
    }
    begin = time.perf_counter()
    with (directory / f"{script.name}.log").open("w") as log:
        for _ in range(repeat):
            file = directory / f"{script.name}.json"
            file.unlink(missing_ok=True)
            command = [*_launcher(script, answer["missing"]), str(script.path), "--json", str(file)]
            try:
                done = subprocess.run(
                    command + ["--quick"] * quick,
                    cwd=ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    timeout=LONGEST,
                )
            except subprocess.TimeoutExpired:
                answer["error"] = f"took over {LONGEST} s"
                break
            if done.returncode or not file.exists():
                said = _last_line(Path(log.name))
                answer["error"] = f"ended with {done.returncode}: {said}"
                if module := re.search(r"No module named '(\w+)", said):
                    answer["missing"][module[1]] = f"pip install {module[1]}"
                break
            found = json.loads(file.read_text())
            file.unlink()
            answer["missing"] |= found.get("missing", {})
            for key, value in found["results"].items():
                answer["samples"].setdefault(key, []).append(value)
    answer["results"] = {key: page.median(values) for key, values in answer["samples"].items()}
    answer["seconds"] = round(time.perf_counter() - begin, 1)
    return answer


def _launcher(script: Script, missing: dict[str, str]) -> list[str]:
    ranks = script.about.ranks
    if ranks > 1:
        launcher = figures.program("mpiexec", "pip install mpich")
        if launcher:
            return [launcher, "-n", str(ranks), sys.executable]
        missing["mpiexec"] = f"pip install mpich; measured on one rank instead of {ranks}"
    return [sys.executable]


def _outcome(answer: dict[str, Any], log: Path) -> str:
    """Say in a line, or two, how it went."""
    lines = [f"{answer['seconds']:.0f} s"]
    if "error" in answer:
        lines[0] += f", FAILED: {answer['error']} ({log})"
    else:
        judged = [
            figures.meets(answer["results"][key], target)
            for key, target in answer["targets"].items()
            if key in answer["results"]
        ]
        lines[0] += f", {len(answer['results'])} figures"
        lines[0] += f", {sum(judged)} of {len(judged)} targets met" if judged else ""
    lines += [f"    without {peer}: {install}" for peer, install in answer["missing"].items()]
    return "\n".join(lines)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text().splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"


def _load(file: str) -> dict[str, Any]:
    """Read a results file, or the one in a directory."""
    path = Path(file) / "results.json" if Path(file).is_dir() else Path(file)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        document: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not a results file of this command: {error}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise InputError(
            f"{path} is not a results file of this command: its format is not {FORMAT}"
        )
    if document.get("version") != VERSION:
        raise InputError(
            f"{path} is of version {document.get('version')}, this command reads {VERSION}: run "
            "the benchmarks again, or use the checkout that wrote it"
        )
    return document


def _seconds(script: Script, quick: bool) -> float:
    return script.about.quick_seconds if quick else script.about.seconds


def _time(script: Script, quick: bool) -> str:
    seconds = _seconds(script, quick)
    return f"{seconds:g} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _parser() -> Parser:
    parser = Parser(prog="python -m benchmarks", description=__doc__)
    parser.set_defaults(command=list_questions)
    commands = parser.add_subparsers(metavar="COMMAND")
    commands.add_parser("list", help="the questions (the default)").set_defaults(
        command=list_questions
    )
    add = commands.add_parser("run", help="run questions, all if none is named")
    add.set_defaults(command=run)
    add.add_argument("names", nargs="*", metavar="NAME", help="questions, as the list calls them")
    add.add_argument("--quick", action="store_true", help="smaller and fewer: minutes in total")
    add.add_argument(
        "--repeat",
        type=Range(1, 1000),
        default=1,
        metavar="N",
        help="runs of each, so that compare knows the noise (default: 1)",
    )
    add.add_argument("--output", metavar="DIR", help="default: runs/benchmarks-TIME")
    add = commands.add_parser("compare", help="what changed between two runs beyond noise")
    add.set_defaults(command=compare)
    add.add_argument("before", metavar="A", help="results.json, or its directory")
    add.add_argument("after", metavar="B")
    add.add_argument(
        "--noise",
        type=Range(0, 1000, whole=False),
        default=0.25,
        metavar="SHARE",
        help="what a figure may change by where no repetitions tell (default: 0.25)",
    )
    add = commands.add_parser("page", help="write the page of a results file again")
    add.set_defaults(command=draw)
    add.add_argument("file", metavar="A")
    add.add_argument("--output", default="report.html", metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
