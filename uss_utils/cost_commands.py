"""The command line's ``estimate`` and ``recipes``: before a training is started."""

from typing import Annotated

import typer

from uss_utils.command_options import (
    DataRoot,
    Device,
    Settings,
    Steps,
    Weights,
    settings_of,
)
from uss_utils.presets import unknown


def estimate(
    method: Annotated[
        str,
        typer.Argument(help="kmeans, stego, hp, ppap, primaps, maskcontrast or hsg."),
    ],
    preset: Annotated[str, typer.Option(help="Preset of the method.")] = "scenes",
    data_root: DataRoot = None,
    steps: Steps = None,
    weights: Weights = None,
    setting: Settings = None,
    precision: Annotated[
        str | None, typer.Option(help="no (float32), bf16 or fp16.")
    ] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Parts that a batch is computed in.")
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="That would train together.")
    ] = 1,
    device: Device = "auto",
    seconds: Annotated[
        float, typer.Option(help="Of measuring, about; 0: sizes alone.")
    ] = 40.0,
) -> None:
    """Say what a training would take, before it is started.

    Images, feature cache, files, memory, steps and hours. Times come from a short run
    of the method itself on this machine. Writes nothing. Data and weights need not be
    there: pictures of the same size and random weights stand in, and it says so.
    """
    from uss_utils import cost, methods

    module = methods.load(method)
    options = {"root": data_root, "weights": weights, "steps": steps}
    options |= {"precision": precision, "accumulate": accumulate}
    cfg = module.Config.preset(preset, **settings_of(setting, **options))
    typer.echo(
        cost.estimate(module, cfg, device=device, processes=processes, seconds=seconds)
    )


def recipes(
    method: Annotated[
        str | None, typer.Argument(help="Of this method only; all if not given.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="The commands of this one, in their order.")
    ] = None,
) -> None:
    """List how to train what the papers report.

    Batch, steps, disk, GPU hours where the authors tell them, and the score to expect,
    with its source. With --preset, all commands: fetching the data, training on one GPU
    or on several, scoring. Writes nothing.
    """
    from uss_utils import paper_recipes

    found = paper_recipes.recipes(method)
    if preset is None:
        typer.echo(paper_recipes.table(found))
        return
    chosen = [row for row in found if row.preset == preset]
    if not chosen:
        raise ValueError(unknown("preset", preset, {row.preset for row in found}))
    typer.echo("\n\n".join(map(paper_recipes.text, chosen)))
