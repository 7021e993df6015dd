"""The command line: ``python -m uss_utils COMMAND``.

A user's mistake ends in one line; ``USS_DEBUG=1`` shows the whole traceback instead.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from uss_utils.data_commands import DataRoot
from uss_utils.data_commands import app as data_app

app = typer.Typer(
    help="Unsupervised semantic segmentation: the course's command line.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(data_app, name="data")

Parameters = Annotated[
    list[str] | None,
    typer.Option("-p", "--parameter", help="NAME=VALUE for the notebooks; repeatable."),
]


@app.command()
def environment() -> None:
    """Say what is installed and what is missing: packages, weights, CRF, GPU."""
    from uss_utils.installation import check_environment

    lines = check_environment()
    typer.echo("\n".join(lines))
    if any(line.startswith("[FAIL]") for line in lines):
        raise typer.Exit(1)


@app.command()
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
    """Run the notebooks headlessly and gather records, leaderboard and one page."""
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


@app.command()
def notebooks(
    names: Annotated[
        list[str] | None, typer.Argument(help="Names; all when none is given.")
    ] = None,
) -> None:
    """Re-run the notebooks and rewrite them with the outputs of one clean run."""
    from uss_utils.course import refresh

    results = refresh(names or None)
    if any(not result.ok for result in results):
        raise typer.Exit(1)


@app.command()
def ladder(
    preset: Annotated[str, typer.Option(help="Preset of the baselines.")] = "scenes",
    data_root: DataRoot = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds, from 0.")] = 3,
    weights: Annotated[
        Path | None, typer.Option(help="Your own tiny ViT instead of the shipped one.")
    ] = None,
    crf: Annotated[bool, typer.Option(help="Add rows with the dense CRF.")] = False,
    out: Annotated[Path | None, typer.Option(help="Where records go.")] = None,
) -> None:
    """Row index, colour, untrained and trained features: k-means and linear probe."""
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


@app.command()
def train(
    method: Annotated[str, typer.Argument(help="kmeans, stego, hp ...")],
    preset: Annotated[str, typer.Option(help="Preset of the method.")] = "scenes",
    data_root: DataRoot = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds, from 0.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Your own tiny ViT instead of the shipped one.")
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="FIELD=VALUE of the preset; repeatable."),
    ] = None,
    crf: Annotated[bool, typer.Option(help="Score with the dense CRF too.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    out: Annotated[
        Path | None, typer.Option(help="Folder of checkpoints, models and records.")
    ] = None,
) -> None:
    """Train a method, save its models and score them; a killed run continues."""
    from uss_utils import methods, runs
    from uss_utils.evaluation import leaderboard
    from uss_utils.notebooks import parse_parameters
    from uss_utils.paths import runs_dir

    module = methods.load(method)
    cfg = module.Config.preset(
        preset,
        root=data_root,
        weights=weights,
        steps=steps,
        crf=crf or None,
        **parse_parameters(setting or []),
    )
    folder = out or runs_dir() / preset
    records = runs.train(module, cfg, range(seeds), folder, device=device)
    typer.echo(leaderboard(records))


@app.command()
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
    crf: Annotated[bool, typer.Option(help="Score with the dense CRF too.")] = False,
    limit_crf: Annotated[
        int | None, typer.Option(help="On at most so many images.")
    ] = None,
    classifier_epochs: Annotated[
        int,
        typer.Option(help="Epochs of a linear classifier, MaskContrast's (60 on VOC)."),
    ] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Where the record goes.")] = None,
) -> None:
    """Score a saved model once more, under other switches if you like."""
    from dataclasses import replace

    from uss_utils import methods, runs
    from uss_utils.evaluation import leaderboard
    from uss_utils.linear_classifier import ClassifierRecipe
    from uss_utils.paths import runs_dir
    from uss_utils.segmenter import Segmenter

    segmenter = Segmenter.load(model, device, weights=weights)
    changes = {"fit_map_on": fit_map_on, "crf": crf}
    if flip is not None:
        changes["flip"] = flip
    recipe = ClassifierRecipe(epochs=classifier_epochs) if classifier_epochs else None
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
    if recipe:
        typer.echo("linear classifier: mIoU {miou:.1f}".format(**record["classifier"]))


@app.command()
def hierarchy(
    model: Annotated[Path, typer.Argument(help="A model of hsg that `train` saved.")],
    images: Annotated[Path, typer.Argument(help="A picture, or a folder of them.")],
    out: Annotated[Path, typer.Option(help="Gets a folder per picture.")],
    max_side: Annotated[
        int, typer.Option(help="Longer sides are shrunk to this for the network.")
    ] = 512,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
) -> None:
    """Cut pictures into regions at several levels: nested maps and their tree."""
    from uss_utils import methods, runs
    from uss_utils.segmenter import Segmenter

    segmenter = Segmenter.load(model, device)
    module = methods.load(segmenter.method)
    found = runs.save_hierarchies(module, segmenter, images, out, max_side)
    typer.echo(f"{len(found)} pictures cut into nested regions: {out}")


@app.command()
def pretrain(
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    dataset: Annotated[
        list[str] | None,
        typer.Option(help="Data sets whose images are used (labels are not)."),
    ] = None,
    data_root: DataRoot = None,
    images: Annotated[int | None, typer.Option(help="Images per data set.")] = None,
    image_size: Annotated[
        str | None, typer.Option(help="HxW that photographs are resized to.")
    ] = None,
    vicreg_steps: Annotated[int | None, typer.Option(help="Steps of stage 1.")] = None,
    distil_steps: Annotated[int | None, typer.Option(help="Steps of stage 2.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images per step.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="bf16, or no: faster where a CPU emulates bf16.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and views.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
    half: Annotated[bool, typer.Option(help="Store float16 (or float32).")] = True,
    work: Annotated[
        Path | None, typer.Option(help="Folder of checkpoints; the run resumes there.")
    ] = None,
) -> None:
    """Pretrain the tiny ViT by self-supervision; without options, the shipped one."""
    from uss_utils import pretraining
    from uss_utils.environment import pick_device
    from uss_utils.paths import runs_dir
    from uss_utils.weights_card import save_weights

    chosen = {
        "datasets": tuple(dataset) if dataset else None,
        "images": images,
        "image_size": _size(image_size) if image_size else None,
        "vicreg_steps": vicreg_steps,
        "distil_steps": distil_steps,
        "batch_size": batch_size,
        "precision": precision,
        "seed": seed,
    }
    cfg = pretraining.Config(**{k: v for k, v in chosen.items() if v is not None})
    target = pick_device(device)
    data = pretraining.unlabelled(cfg, root=data_root)
    vit, histories = pretraining.pretrain(
        cfg, data, folder=work or runs_dir() / "pretrain" / out.stem, device=target
    )
    card = save_weights(
        out,
        vit,
        cfg,
        histories,
        command=f"python -m uss_utils {_public_arguments()}",
        half=half,
    )
    typer.echo(f"weights: {out}\ncard: {card}")


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise ValueError(f"an image size is given as HxW, such as 240x320; got {text}")
    return int(height), int(width)


def _public_arguments() -> str:
    """This command's arguments; where somebody's folders lie stays private."""
    words = (Path(word).name if Path(word).is_absolute() else word for word in sys.argv)
    return " ".join(list(words)[1:])


def share_cores() -> None:
    """Let torch's threads wait for each other politely; has to come before torch.

    GNU's OpenMP spins through 300 000 turns first. Beside another program that costs
    more than the work: 300 small training steps took 35 s instead of 1.6 s on two
    cores with one of them busy; with 1000 turns 5.3 s, and 1.7 s on idle cores.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


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
