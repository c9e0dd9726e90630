"""See what each rank of a search does when.

``python examples/testing.py [FILE]``: a short search on two ranks writes a trace (open FILE in
ui.perfetto.dev or chrome://tracing), and the time of each step is added up here.
"""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(sys.argv[1] if len(sys.argv) > 1 else f"{directory}/trace.json")
        mpiexec = Path(sys.executable).with_name("mpiexec")
        search = "-m transfer_nas.evolve --application breast_cancer --max_evals 12 --epochs 2"
        options = ["--population_size", "4", "--seed", "1", "--output_dir", f"{directory}/run"]
        command = [str(mpiexec), "-n", "2", sys.executable, *search.split(), *options]
        subprocess.run([*command, "--trace", str(file)], check=True)
        events = json.loads(file.read_text())["traceEvents"]

    for rank in (0, 1):
        seconds: Counter[str] = Counter()
        for event in events:
            if event["ph"] == "X" and event["pid"] == rank:
                seconds[event["name"]] += event["dur"] / 1e6
        steps = ", ".join(f"{name} {spent:.3f} s" for name, spent in seconds.most_common())
        print(f"rank {rank}: {steps}")


if __name__ == "__main__":
    main()
