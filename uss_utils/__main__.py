"""The command line: ``python -m uss_utils COMMAND``.

A user's mistake ends in one line; ``USS_DEBUG=1`` shows the whole traceback instead.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from uss_utils.book_commands import book
from uss_utils.command_options import (
    Crf,
    DataRoot,
    Device,
    Records,
    Settings,
    Steps,
    Weights,
    ending,
    settings_of,
)
from uss_utils.cost_commands import estimate, recipes
from uss_utils.data_commands import app as data_app
from uss_utils.pretrain_commands import pretrain
from uss_utils.segment_commands import segment

app = typer.Typer(
    help="Unsupervised semantic segmentation: the course's command line.\n\n"
    "Begin with environment, then course. Train a method with train, score it with "
    "evaluate, use it on photographs with segment. Every command has a --help.",
    epilog="Results go below runs/ ($USS_RUNS), data sets below data/ ($USS_DATA).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain lines: examples can be copied
    add_completion=False,
)

Parameters = Annotated[
    list[str] | None,
    typer.Option("-p", "--parameter", help="NAME=VALUE for the notebooks; repeatable."),
]


@app.command(epilog=ending("environment"))
def environment() -> None:
    """Say what is installed and what is missing.

    Packages, weights, CRF, GPU. Every line of a missing part ends with the command that
    installs it. Writes nothing; exit status 1 where something needed is missing.
    """
    from uss_utils.installation import check_environment

    lines = check_environment()
    typer.echo("\n".join(lines))
    if any(line.startswith("[FAIL]") for line in lines):
        raise typer.Exit(1)


@app.command(epilog=ending("course"))
def course(
    notebooks: Annotated[
        list[str] | None, typer.Argument(help="Names; all when none is given.")
    ] = None,
    preset: Annotated[str, typer.Option(help="Preset of every notebook.")] = "scenes",
    out: Annotated[Path | None, typer.Option(help="Where results go.")] = None,
    parameter: Parameters = None,
    timeout: Annotated[int, typer.Option(help="Seconds per notebook cell.")] = 1800,
    jobs: Annotated[
        int | None,
        typer.Option(help="Notebooks at a time; one per core with memory for it."),
    ] = None,
) -> None:
    """Run the notebooks headlessly; records, scores, one page.

    A failing notebook stops no other; exit status 1 where one failed. Writes into
    runs/PRESET: notebooks/ (executed), records/ (one JSON file per score), results.json
    (minutes, memory), leaderboard.md and index.html, which needs no other file.
    Several run at a time, each with one thread: numbers do not depend on the cores. The
    preset smoke takes seconds per notebook, scenes minutes; others need a data set.
    """
    from uss_utils.course import OFFLINE_PRESETS, jobs_here, parse_parameters, run

    if preset not in OFFLINE_PRESETS:
        _check_preset(preset)
    results = run(
        notebooks or None,
        preset=preset,
        out=out,
        parameters=parse_parameters(parameter or []),
        timeout=timeout,
        jobs=jobs_here() if jobs is None else jobs,
    )
    if any(not result.ok for result in results):
        raise typer.Exit(1)


def _check_preset(name: str) -> None:
    """Refuse a preset that no method has, before every notebook stumbles over it."""
    from uss_utils import methods
    from uss_utils.presets import unknown

    tables = [methods.load(method).PRESETS for method in methods.METHODS]
    known = list(dict.fromkeys(preset for table in tables for preset in table))
    if name not in known:
        raise ValueError(unknown("preset", name, known))


@app.command(epilog=ending("notebooks"))
def notebooks(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names; all when none is given.")
    ] = None,
) -> None:
    """Re-run the notebooks and rewrite them with their outputs.

    For those who change the course. Rewrites notebooks/; without names also the
    README's minutes, scores and picture. Refuses absolute paths and large files.
    """
    from uss_utils.course import refresh

    results = refresh(names or None)
    if any(not result.ok for result in results):
        raise typer.Exit(1)


@app.command(epilog=ending("ladder"))
def ladder(
    preset: Annotated[str, typer.Option(help="Preset of the baselines.")] = "scenes",
    data_root: DataRoot = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from 0.")] = 3,
    weights: Weights = None,
    crf: Crf = False,
    out: Records = None,
) -> None:
    """Score the baselines that a method has to beat.

    K-means and linear probe of row index, colour, untrained and trained features.
    Prints a table and writes one record per rung and seed into runs/PRESET/records.
    """
    from uss_utils.evaluation import write_record
    from uss_utils.methods import kmeans
    from uss_utils.paths import runs_dir

    cfg = kmeans.Config.preset(preset, root=data_root, weights=weights, crf=crf)
    records = kmeans.ladder(cfg, seeds=range(seeds), progress=True)
    folder = out or runs_dir() / preset / "records"
    for record in records:
        write_record(record, folder)
    typer.echo(kmeans.table(records))
    typer.echo(f"records: {folder}")


@app.command(epilog=ending("train"))
def train(
    method: Annotated[
        str,
        typer.Argument(help="kmeans, stego, hp, ppap, primaps, maskcontrast or hsg."),
    ],
    preset: Annotated[str, typer.Option(help="Preset of the method.")] = "scenes",
    data_root: DataRoot = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds, from 0.")] = 1,
    steps: Steps = None,
    weights: Weights = None,
    setting: Settings = None,
    crf: Crf = False,
    device: Device = "auto",
    precision: Annotated[
        str | None, typer.Option(help="no (float32), bf16, or fp16 (GPU).")
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Compute a batch in so many parts.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of checkpoints, models and records.")
    ] = None,
) -> None:
    """Train a method, save its models and score them.

    A killed run continues, also with another number of processes: accelerate launch
    --num_processes 4 -m uss_utils train METHOD shares every batch by four GPUs. Writes
    into runs/PRESET: checkpoints/, models/METHOD-seedN.safetensors and records/, and
    prints the scores. An unknown method, preset or setting lists the known ones; what a
    preset holds stands in uss_utils/methods.
    """
    from uss_utils import methods, runs
    from uss_utils.evaluation import leaderboard
    from uss_utils.launch import together
    from uss_utils.paths import runs_dir

    module = methods.load(method)
    options = {"precision": precision, "accumulate": accumulate}
    options |= {"root": data_root, "weights": weights, "steps": steps}
    changes = settings_of(setting, crf=crf or None, **options)
    cfg = module.Config.preset(preset, **changes)
    folder = out or runs_dir() / preset
    with together(device):
        records = runs.train(module, cfg, range(seeds), folder, device=device)
        typer.echo(leaderboard(records))


@app.command(epilog=ending("evaluate"))
def evaluate(
    model: Annotated[Path, typer.Argument(help="A model that `train` saved.")],
    data_root: DataRoot = None,
    weights: Annotated[
        Path | None, typer.Option(help="The backbone's file, where it was your own.")
    ] = None,
    fit_map_on: Annotated[
        str, typer.Option(help="Whose labels name the clusters: train or eval.")
    ] = "train",
    flip: Annotated[
        bool | None, typer.Option(help="Average with the mirror image, or not.")
    ] = None,
    crf: Crf = False,
    limit_crf: Annotated[
        int | None, typer.Option(help="On at most so many images.")
    ] = None,
    classifier_epochs: Annotated[
        int,
        typer.Option(help="Epochs of a linear classifier, MaskContrast's (60 on VOC)."),
    ] = 0,
    device: Device = "auto",
    out: Records = None,
) -> None:
    """Score a saved model once more, under other switches.

    On the data set that it was trained for. Prints the scores and writes a record into
    runs/PRESET/records.
    """
    from dataclasses import replace

    from uss_utils import methods, runs
    from uss_utils.evaluation import leaderboard
    from uss_utils.launch import together
    from uss_utils.linear_classifier import ClassifierRecipe
    from uss_utils.paths import runs_dir
    from uss_utils.segmenter import Segmenter

    changes = {"fit_map_on": fit_map_on, "crf": crf}
    if flip is not None:
        changes["flip"] = flip
    recipe = ClassifierRecipe(epochs=classifier_epochs) if classifier_epochs else None
    with together(device):
        segmenter = Segmenter.load(model, device, weights=weights)
        record = runs.rescore(
            methods.load(segmenter.method),
            segmenter,
            out or runs_dir() / segmenter.preset / "records",
            protocol=replace(segmenter.protocol, **changes),
            limit_crf=limit_crf,
            classifier=recipe,
            root=data_root,
        )
        typer.echo(leaderboard([record]))
        if "classifier" in record:
            score = record["classifier"]["miou"]
            typer.echo(f"linear classifier: mIoU {score:.1f}")


app.command(epilog=ending("segment"), short_help="Segment your own photographs.")(
    segment
)


@app.command(epilog=ending("hierarchy"))
def hierarchy(
    model: Annotated[Path, typer.Argument(help="A model of hsg that `train` saved.")],
    images: Annotated[Path, typer.Argument(help="A picture, or a folder of them.")],
    out: Annotated[Path, typer.Option(help="Gets a folder per picture.")],
    max_side: Annotated[
        int, typer.Option(help="Longer sides are shrunk to this for the network.")
    ] = 512,
    device: Device = "auto",
) -> None:
    """Cut pictures into nested regions, at several levels.

    Writes a folder per picture into OUT: a map per level, the tree as JSON, and
    overview.png. A picture that cannot be read is named and left out.
    """
    from uss_utils import methods, runs
    from uss_utils.segmenter import Segmenter

    segmenter = Segmenter.load(model, device)
    module = methods.load(segmenter.method)
    found = runs.save_hierarchies(module, segmenter, images, out, max_side)
    typer.echo(f"{len(found)} pictures cut into nested regions: {out}")


app.command(epilog=ending("book"), short_help="Make a site of all notebooks.")(book)
app.command(epilog=ending("pretrain"))(pretrain)
app.command(epilog=ending("estimate"))(estimate)
app.command(epilog=ending("recipes"))(recipes)
app.add_typer(data_app, name="data")


def share_cores() -> None:
    """Let torch's threads wait for each other politely; has to come before torch.

    GNU's OpenMP spins through 300 000 turns first. Beside another program that costs
    more than the work: 300 small training steps took 35 s instead of 1.6 s on two
    cores with one of them busy; with 1000 turns 5.3 s, and 1.7 s on idle cores.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if "WORLD_SIZE" in os.environ:
        # Else every process says that it looked for unused weights and found none.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def main() -> None:
    """Run a command; turn a user's mistake into one line."""
    share_cores()
    try:
        app()
    except (ValueError, OSError, RuntimeError, ArithmeticError, ImportError) as error:
        if os.environ.get("USS_DEBUG"):
            raise
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
