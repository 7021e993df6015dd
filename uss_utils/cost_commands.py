"""The command line's ``estimate``: what a training would take."""

from typing import Annotated

import typer

from uss_utils.command_options import DataRoot, Device, Settings, Steps, Weights


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
    ] = 45.0,
) -> None:
    """Say what a training would take, before it is started.

    Images, feature cache, files, memory, steps and hours. Times come from a short run
    of the method itself on this machine. Writes nothing. Data and weights need not be
    there: pictures of the same size and random weights stand in, and it says so.
    """
    from uss_utils import cost, methods
    from uss_utils.notebooks import parse_parameters

    module = methods.load(method)
    changes = parse_parameters(setting or [])
    changes |= {"root": data_root, "weights": weights, "steps": steps}
    changes |= {"precision": precision, "accumulate": accumulate}
    cfg = module.Config.preset(
        preset, **{name: value for name, value in changes.items() if value is not None}
    )
    typer.echo(
        cost.estimate(module, cfg, device=device, processes=processes, seconds=seconds)
    )
