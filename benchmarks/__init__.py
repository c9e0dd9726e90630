"""One script a question; ``python -m benchmarks`` lists, runs and compares them.

A file here that assigns a `figures.Question` to ``QUESTION`` is a question: there is no other list.
It takes ``--json FILE`` and ``--quick`` and runs alone, too, as ``python benchmarks/NAME.py`` or as
``python -m benchmarks.NAME``.
"""

import sys
from pathlib import Path

# Run as a file, a script finds the modules beside it by their plain names; so it does with -m.
sys.path.insert(0, str(Path(__file__).parent))
