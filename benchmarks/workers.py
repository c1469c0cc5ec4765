"""Two trials at once on `local[2]` against one after another: epochs, seconds, objective reached.

python -m benchmarks.workers [--config FILE --source DIR] [-o KEY=VALUE]
"""

from __future__ import annotations

from benchmarks._search import compare, configured, means, parser


def main() -> None:
    """Run both, print the table and the ratio."""
    given = parser(__doc__, seeds=1).parse_args()
    kinds = {
        "serial": configured(given, "search.executor=serial"),
        "local[2]": configured(given, "search.executor=spark", "search.parallelism=2"),
    }
    table = means(compare(kinds, given.source, given.seeds), "kind").set_index("kind")
    print(table.to_string())
    ratio = table.seconds["serial"] / table.seconds["local[2]"]
    print(f"\nlocal[2] is {ratio:.2f} times as fast as serial")


if __name__ == "__main__":
    main()
