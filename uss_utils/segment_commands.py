"""The command line's part for photographs of one's own: ``segment FOLDER``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from uss_utils.photo_folder import FolderResult


def segment(
    folder: Annotated[Path, typer.Argument(help="Photographs: a folder, or one.")],
    out: Annotated[Path, typer.Option(help="Folder of the results.")],
    model: Annotated[
        Path | None, typer.Option(help="A model that `train` or `segment` saved.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="Instead: kmeans, stego, hp ..., trained on FOLDER."),
    ] = None,
    preset: Annotated[str, typer.Option(help="Preset of the method.")] = "camvid-tiny",
    clusters: Annotated[
        int | None,
        typer.Option(
            min=1, help="How many; one per class of the labels, 8 without labels."
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="FIELD=VALUE of the preset; repeatable."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything drawn in training.")] = 0,
    weights: Annotated[
        Path | None, typer.Option(help="The backbone's file, where it was your own.")
    ] = None,
    names: Annotated[
        Path | None,
        typer.Option(help='JSON {"names": {"0": "sky", ...}}; equal names are merged.'),
    ] = None,
    crf: Annotated[bool, typer.Option(help="Sharpen with the dense CRF.")] = False,
    max_side: Annotated[
        int,
        typer.Option(
            help="Longer sides are shrunk to this for the network; 320 takes a third "
            "of the time."
        ),
    ] = 512,
    overwrite: Annotated[
        bool, typer.Option(help="Train and segment anew, finished or not.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda ...")] = "auto",
) -> None:
    """Segment your own photographs: label PNGs, overlays and one page to look at.

    Labels are optional, any size and format will do, and files that cannot be read are
    named and skipped. Either use a trained model (--model), or train on the folder
    itself (--method); its model stays in OUT/model.safetensors. Run the same command
    again after it was stopped: it continues.
    """
    from uss_utils import methods, photo_folder
    from uss_utils.notebooks import parse_parameters
    from uss_utils.segmenter import Segmenter

    if (model is None) == (method is None):
        raise ValueError(
            "give either --model FILE, a trained model, or --method NAME, which is "
            f"trained on the folder: {', '.join(methods.METHODS)}"
        )
    if model is not None and (clusters or steps or setting):
        raise ValueError("--clusters, --steps and --set are for --method, not --model")
    photo_folder.check_places(folder, out, crf)
    if names is not None and not names.is_file():
        raise FileNotFoundError(f"no file with names at {names}")
    if model is not None:
        segmenter = Segmenter.load(model, device, weights=weights)
    else:
        given = parse_parameters(setting or [])
        if weights is not None:
            given["weights"] = str(weights)
        segmenter = photo_folder.train_on_folder(
            methods.load(method),
            folder,
            out,
            preset=preset,
            clusters=clusters,
            steps=steps,
            settings=given,
            seed=seed,
            device=device,
            overwrite=overwrite,
            progress=True,
        )
    result = photo_folder.segment_folder(
        segmenter,
        folder,
        out,
        crf=crf,
        max_side=max_side,
        names=names,
        overwrite=overwrite,
        progress=True,
    )
    for name, reason in result.skipped.items():
        typer.echo(f"skipped {name}: {reason}")
    typer.echo(
        f"segmented {len(result.made)}{_pace(result)}, finished before "
        f"{len(result.kept)}, skipped {len(result.skipped)}"
    )
    if "record" in result.summary:
        scores = result.summary["record"]["headline"]
        typer.echo(
            "scores by the labels, in %: "
            + ", ".join(f"{k} {v:.1f}" for k, v in scores.items() if v is not None)
        )
    typer.echo(f"look at {result.page}")


def _pace(result: "FolderResult") -> str:
    """Seconds per picture, without reading it."""
    if not result.made:
        return ""
    pictures = result.summary["pictures"]
    seconds = sum(pictures[name]["seconds"] for name in result.made)
    return f" ({seconds / len(result.made):.2f} s each)"
