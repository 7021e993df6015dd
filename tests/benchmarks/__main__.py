"""One table of all benchmarks: what, how large, ours, the authors' code, the target.

``python -m tests.benchmarks`` in the repository's root, on an otherwise idle machine;
some minutes. Times are processor seconds of one thread, so that other work on the
machine hardly changes them, but for the rows about several cores. The table is compared
with the one kept in ``tests/benchmarks/results``; ``--save`` replaces that. On a GPU:
``python -m tests.benchmarks.gpu``.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks import running, tables

KEPT = running.FOLDER / "results" / "cpu.json"


def main(
    arguments: Sequence[str] | None = None, modules: dict[str, str] | None = None
) -> int:
    """Measure and print.

    Args:
        arguments: of the command line.
        modules: with their cases, by group; None: all of this folder.

    Returns:
        Exit status: 1 if a row could not be measured.
    """
    asked = _parser().parse_args(arguments)
    if modules is None:
        modules = {group: running.module_of(group) for group in running.groups()}
    try:
        chosen = running.selected(modules, asked.only, asked.all)
        kept = _kept(asked)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    if asked.list:
        for group, _, _, case in chosen:
            print(f"{group}: {case.name}, {case.size}")
        return 0
    facts, begun, rows = tables.about(), time.perf_counter(), []
    for place, row in enumerate(running.run(chosen), start=1):
        rows.append(row)
        told = row["error"] or tables.figure(row["figure"], row["unit"])
        line = f"{place}/{len(chosen)} {row['group']}: {row['name']}: {told}"
        print(line, file=sys.stderr, flush=True)
    print(tables.described(facts))
    if kept:
        print(f"change: against {tables.described(kept['about'])}")
    print(f"\n{tables.table(rows, kept)}\n")
    print(f"{tables.summary(rows)}; {time.perf_counter() - begun:.0f} s in all")
    if asked.save:
        tables.write(rows, facts, asked.compare or KEPT)
        print("kept for the next run")
    return int(any(row["error"] for row in rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help='a group, or "group: beginning of a row"; may be given several times',
    )
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    parser.add_argument("--all", action="store_true", help="with those of minutes")
    parser.add_argument(
        "--compare", type=Path, metavar="FILE", help="a kept table (default: the one)"
    )
    parser.add_argument(
        "--save", action="store_true", help="keep this table in place of that one"
    )
    return parser


def _kept(asked: argparse.Namespace) -> dict | None:
    """The table to compare with, if there is one.

    Raises:
        FileNotFoundError: not where the user said.
        ValueError: it is none; or a part of the rows would replace all.
    """
    if asked.save and asked.only:
        raise ValueError("--save keeps a whole table; leave --only out")
    path = asked.compare or KEPT
    if not path.exists() and (asked.save or not asked.compare):
        return None
    return tables.read(path)


def alone(group: str) -> int:
    """What the module of a group does when it is run by itself."""
    return main(["--only", group, *sys.argv[1:]])


if __name__ == "__main__":
    raise SystemExit(main())
