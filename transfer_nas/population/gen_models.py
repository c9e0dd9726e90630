"""``transfer-nas gen-models``: how many models a second can be made, named and found.

Generation alone: nothing is trained and nothing is written. Under ``mpiexec`` the ranks share the
work, and the models are those of ``evolve --application none`` with the same seed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from cpp_store.command_line import OK
from cpp_store.ranges import Range

from cpp_store import command_line, ranges
from graph_meta.service import PrefixService
from transfer_nas.command_line import Parser, on_ranks
from transfer_nas.population import default_space, generation
from transfer_nas.ranks import MPIRanks, Ranks
from transfer_nas.spaces import GeneSpace


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, or 2 for bad input."""
    return command_line.run("gen_models", lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    given = _parser().parse_args(arguments)

    space = default_space(given.space)
    return on_ranks("gen_models", lambda ranks: _generate(given, space, ranks))


def _generate(given: argparse.Namespace, space: GeneSpace, ranks: Ranks) -> int:
    comm = ranks.comm if isinstance(ranks, MPIRanks) else None
    ranks.share(None)  # the clock starts when all are there
    begin = time.perf_counter()
    with PrefixService(comm) as service:
        made = generation.generate(
            space, given.seed, given.count, 0, service, None, lambda done: None
        )
        parts = ranks.share([made.layers, made.bytes])
        seconds = time.perf_counter() - begin
    if ranks.rank == 0:
        result = {
            "space": space.name,
            "count": given.count,
            "ranks": ranks.size,
            "seconds": seconds,
            "models_per_second": given.count / seconds,
            "layers": sum(layers for layers, _ in parts),
            "bytes": sum(nbytes for _, nbytes in parts),
        }
        if given.json:
            command_line.print_json(result)
        else:
            print(
                f"{given.count:,} models of space {space.name} ({result['layers']:,} layers) made, "
                f"named and registered by {ranks.size} rank(s) in {seconds:.2f} s: "
                f"{given.count / seconds:,.0f} a second"
            )
    return OK


def _parser() -> Parser:
    parser = Parser(
        prog="python -m transfer_nas.population.gen_models",
        description="Generate models without training or writing them; say how many a second.",
    )
    parser.add_argument(
        "--space", metavar="NAME", help="architectures to draw from (default: dense_skip)"
    )
    parser.add_argument(
        "--count",
        type=Range(1, 10**9),
        default=10_000,
        metavar="N",
        help="models in all (default: 10000)",
    )
    parser.add_argument(
        "--seed", type=ranges.SEED, default=0, help="seed of the genomes (default: 0)"
    )
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
