"""Trials at once on `local[n]` against one after another: epochs, seconds, objective reached.

    python -m benchmarks.workers [--at-once 2] [--config FILE --source DIR] [-o KEY=VALUE]

On a machine with one GPU all of them share it, as on a cluster with `search.gpus_per_trial` of 1 / n:

    python -m benchmarks.workers --at-once 2 -o device=cuda
"""

from __future__ import annotations

from benchmarks._search import compare, configured, means, parser


def main() -> None:
    """Run both, print the table and the ratio."""
    options = parser(__doc__, seeds=1)
    options.add_argument("--at-once", type=int, default=2, metavar="N", help="trials (default 2)")
    given = options.parse_args()
    local = f"local[{given.at_once}]"
    at_once = ("search.executor=spark", f"search.parallelism={given.at_once}")
    kinds = {
        "serial": configured(given, "search.executor=serial"),
        local: configured(given, *at_once),
    }
    table = means(compare(kinds, given.source, given.seeds), "kind").set_index("kind")
    print(table.to_string())
    ratio = table.seconds["serial"] / table.seconds[local]
    print(f"\n{local} is {ratio:.2f} times as fast as serial")


if __name__ == "__main__":
    main()
