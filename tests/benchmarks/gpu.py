"""One table on a GPU: training steps of every method at the papers' sizes.

In the repository's root, on a machine with a CUDA GPU and nothing else running::

    python -m tests.benchmarks.gpu                            # all of it
    python -m tests.benchmarks.gpu --only stego --only hp     # some methods
    python -m tests.benchmarks.gpu --only "hsg voc-resnet50" --precision bf16
    python -m tests.benchmarks.gpu --device cpu --tiny        # without a GPU: a trial

Each method trains at the sizes of its published presets through its own code and the
one training loop; pictures are generated and weights random, so neither data sets nor
a network connection are needed. Where a backbone is frozen, once "from images" and once
"from cache" on disk. Precisions: "fp32" (TF32 off everywhere), "tf32" (on everywhere),
"bf16" (autocast, TF32 off for the rest). Per row: seconds of a step by the clock (data
included), images per second, peak memory, matrix operations (torch's counter) as a
share of this GPU's measured ceiling of that precision, bytes (counted per operation, as
if no cache spared any) as a share of its measured copy, the share of the time in which
the GPU computes, and the largest batch that fits (of one batch tiled, so without
reading; ">=" where a step took more than 5 s, or at 1024). Below: where the time of a
step goes, by part and by kernel.

Every finished row is written to ``--out``; a file of the same commit, machine and
versions is continued, so that a long run can be split with ``--only``. Each preset runs
in a process of its own; one that fails costs its own rows only.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks import running, steps, tables, trainings
from tests.benchmarks.ceilings import ceilings, precision_of
from uss_utils import methods
from uss_utils.environment import pick_device

KEPT = running.FOLDER / "results" / "gpu.json"
FROZEN = ("images", "disk")
PLACES = {"images": "images", "disk": "cache"}
# Method -> preset -> where its images or features come from.
PAPERS = {
    "stego": {"cocostuff27-vits8": FROZEN, "cocostuff27-vitb8": FROZEN},
    "hp": {"cocostuff27-vits8": FROZEN, "cityscapes27-vitb8": FROZEN},
    "ppap": {"cocostuff27-vits8": FROZEN, "cityscapes27-vitb8": FROZEN},
    "primaps": {"cocostuff27-vits8": FROZEN, "cocostuff27-vitb8": FROZEN},
    "maskcontrast": {"voc-resnet50": FROZEN[:1]},
    "hsg": {"voc-resnet50-stage1": FROZEN[:1], "voc-resnet50": FROZEN[:1]},
}
SMALL = {"maskcontrast", "hsg"}  # whose networks are trained from the images
TINY = {name: {"smoke": FROZEN[: 2 - (name in SMALL)]} for name in PAPERS}
PRECISIONS = ("fp32", "tf32", "bf16")
LIMIT = 1500.0  # seconds of one preset


class Size:
    """How much is measured: on a GPU, or tiny."""

    def __init__(self, tiny: bool):
        self.images = 8 if tiny else 32
        self.warm, self.timed = (1, 1) if tiny else (3, 10)
        self.most = 8 if tiny else 1024
        self.step_limit = 5.0  # seconds
        self.matrix = 256 if tiny else 8192
        self.copied = 10**6 if tiny else 4 * 10**9  # bytes


def measure(
    method: str,
    preset: str,
    place: str,
    device: str,
    tiny: bool,
    precisions: Sequence[str],
    limits: dict[str, float],
    search: bool = True,
) -> list[dict[str, Any]]:
    """Rows of one preset, one per precision.

    Args:
        method: its name.
        preset: its name.
        place: "images" or "disk".
        device: where.
        tiny: see :class:`Size`.
        precisions: names.
        limits: from :func:`ceilings`.
        search: look for the largest batch.
    """
    size, rows = Size(tiny), []
    module = methods.load(method)
    with trainings.training_of(module, preset, place, device, size.images) as work:
        for name in precisions:
            with precision_of(name) as word:
                row = _row(work, size, word, limits[name], limits["copy"])
                largest = (None, None)
                if search and name != "tf32":  # which takes the memory of fp32
                    largest = trainings.batch_that_fits(
                        work, size.most, size.step_limit, precision=word
                    )
            row |= {
                "group": method,
                "name": f"{preset}, {PLACES[place]}, {name}",
                "size": f"B {work.batch}",
                "largest": largest[0],
                "largest_ends": largest[1],
            }
            rows.append(row)
    return rows


def _row(
    work: trainings.Training, size: Size, word: str, ceiling: float, copy: float
) -> dict[str, Any]:
    """What is measured of one precision."""
    seconds = steps.step_seconds(work, size.warm, size.timed, precision=word)
    work.forget()
    memory = steps.peak_memory(work, precision=word)
    flops, moved = steps.work_of_a_step(work, precision=word)
    parts = steps.where_time_goes(work, size.timed, precision=word)
    computing, kernels = steps.top_kernels(work, size.timed, precision=word)
    work.forget()
    return {
        "unit": "s",
        "figure": seconds,
        "images_per_second": work.batch / seconds,
        "memory": memory,
        "flops": flops,
        "bytes": moved,
        "of_matmul": flops / seconds / ceiling,
        "of_copy": moved / seconds / copy,
        "busy": min(1.0, computing / seconds),
        "parts": parts,
        "kernels": kernels,
        "error": None,
    }


def failed(method: str, preset: str, place: str, error: str) -> dict[str, Any]:
    """The row of a preset that could not be measured."""
    name = f"{preset}, {PLACES[place]}"
    return {"group": method, "name": name, "size": "", "figure": None, "error": error}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Both tables as text: the steps, and where their time goes."""
    header = ("step", "size", "time", "images/s", "memory", "TFLOP", "of matmul")
    header += ("of copy", "busy", "largest batch")
    good = [row for row in rows if not row["error"]]
    first = [header, *(_cells(row) for row in good)]
    parts = (*steps.PARTS, "rest")
    second = [("where time goes", *parts)]
    second += [
        (_name(row), *(f"{100 * row['parts'][part]:.0f} %" for part in parts))
        for row in good
    ]
    lines = [*tables.aligned(first), "", *tables.aligned(second), "", "kernels"]
    for row in good:
        named = "; ".join(f"{100 * share:.0f} % {key}" for key, share in row["kernels"])
        lines.append(f"{_name(row)}: {named}")
    lines += [f"{_name(r)}: failed: {r['error']}" for r in rows if r["error"]]
    return "\n".join(lines)


def _name(row: dict[str, Any]) -> str:
    return f"{row['group']} {row['name']}"


def _cells(row: dict[str, Any]) -> list[str]:
    largest = tables.NOTHING
    if row["largest"] is not None:
        largest = f"{'' if row['largest_ends'] else '>= '}{row['largest']}"
    return [
        _name(row),
        row["size"],
        tables.figure(row["figure"], row["unit"]),
        f"{row['images_per_second']:.1f}",
        tables.memory(row["memory"]),
        f"{row['flops'] / 1e12:.3g}",
        f"{100 * row['of_matmul']:.0f} %",
        f"{100 * row['of_copy']:.0f} %",
        f"{100 * row['busy']:.0f} %",
        largest,
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and keep.

    Args:
        arguments: of the command line.

    Returns:
        Exit status: 1 if a row could not be measured, 2 if nothing can be.
    """
    asked = _parser().parse_args(arguments)
    table_of = TINY if asked.tiny else PAPERS
    try:
        device = _device(asked)
        chosen = _chosen(table_of, asked.only)
        facts, rows = _begun(asked.out)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    names = [p for p in PRECISIONS if device.startswith("cuda") or p != "tf32"]
    names = [name for name in names if name in (asked.precision or names)]
    size = Size(asked.tiny)
    limits = running.apart(LIMIT, ceilings, device, size.matrix, size.copied, names)
    facts["ceilings"] = facts.get("ceilings", {}) | limits
    for method, preset, place in chosen:
        print(f"{method} {preset}, {PLACES[place]}", file=sys.stderr, flush=True)
        try:
            new = running.apart(
                *(LIMIT, measure, method, preset, place, device, asked.tiny, names),
                *(limits, not asked.no_search),
            )
        except RuntimeError as error:
            new = [failed(method, preset, place, str(error))]
        rows = [row for row in rows if not _replaced(row, new)] + new
        if asked.out:
            tables.write(rows, facts, asked.out)
    print(tables.described(facts))
    for name, value in facts["ceilings"].items():
        unit = "TB/s copied" if name == "copy" else "TFLOP/s"
        print(f"ceiling, {name}: {value / 1e12:.3g} {unit}")
    print(f"\n{table(rows)}")
    return int(any(row["error"] for row in rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--device", default="cuda", help="cuda, cuda:1, or cpu (--tiny)"
    )
    parser.add_argument("--tiny", action="store_true", help="smoke presets: a trial")
    parser.add_argument(
        *("--only",),
        action="append",
        metavar="NAME",
        help='a method, or "METHOD PRESET"; may be given several times',
    )
    parser.add_argument(
        "--precision", action="append", choices=PRECISIONS, help="default: all"
    )
    parser.add_argument(
        "--no-search", action="store_true", help="leave the largest batch out"
    )
    parser.add_argument(
        *("--out",),
        type=Path,
        metavar="FILE",
        help="JSON of the table, written row by row and continued (default: that of "
        "the repository, but for --tiny)",
    )
    return parser


def _device(asked: argparse.Namespace) -> str:
    """The device, where it can be measured; also where the table is kept.

    Raises:
        ValueError: there is no GPU, or a CPU is asked for the papers' sizes.
    """
    if asked.out is None and not asked.tiny:
        asked.out = KEPT
    if asked.device == "cpu" and not asked.tiny:
        raise ValueError("the papers' sizes take a GPU; on a CPU add --tiny")
    if asked.device != "cpu" and not torch.cuda.is_available():
        raise ValueError(
            "torch sees no CUDA GPU here; this table needs one (a trial without: "
            "--device cpu --tiny)"
        )
    return str(pick_device(asked.device))


def _chosen(
    table_of: dict[str, dict[str, Sequence[str]]], only: Sequence[str] | None
) -> list[tuple[str, str, str]]:
    """Method, preset and place of what is asked for.

    Raises:
        ValueError: there is no such method or preset.
    """
    every = [
        (method, preset, place)
        for method, presets in table_of.items()
        for preset, places in presets.items()
        for place in places
    ]
    known = [
        name for method, preset, _ in every for name in (method, f"{method} {preset}")
    ]
    for name in only or ():
        if name not in known:
            names = ", ".join(dict.fromkeys(known))
            raise ValueError(f"nothing is called {name!r}; known: {names}")
    return [e for e in every if not only or {e[0], f"{e[0]} {e[1]}"} & set(only)]


def _begun(path: Path | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the table stands on, and rows of an earlier part of this run.

    Raises:
        ValueError: the file is another one.
    """
    facts = tables.about()
    if path is None or not path.exists():
        return facts, []
    kept = tables.read(path)
    same = all(
        kept["about"].get(name) == facts[name]
        for name in ("commit", "machine", "versions")
    )
    if not same:
        return facts, []
    return facts | {"ceilings": kept["about"].get("ceilings", {})}, kept["rows"]


def _replaced(row: dict[str, Any], new: Sequence[dict[str, Any]]) -> bool:
    """Whether newer rows take a row's place: the same one, or where it had failed."""
    if row["error"]:
        start = row["group"], row["name"]
        return any((n["group"], n["name"][: len(start[1])]) == start for n in new)
    return tables.key(row) in map(tables.key, new)


if __name__ == "__main__":
    raise SystemExit(main())
