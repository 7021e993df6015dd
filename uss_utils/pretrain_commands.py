"""The command line's ``pretrain``: weights of the tiny ViT, made anew."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from uss_utils.command_options import DataRoot, Device


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
    device: Device = "auto",
    half: Annotated[bool, typer.Option(help="Store float16 (or float32).")] = True,
    work: Annotated[
        Path | None, typer.Option(help="Folder of checkpoints; the run resumes there.")
    ] = None,
) -> None:
    """Pretrain the tiny ViT by self-supervision.

    Without options, the one that ships. Writes the weights, and beside them a .json
    with command, settings, losses and machine. A killed run continues. About half an
    hour on one core of a recent server CPU.
    """
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
