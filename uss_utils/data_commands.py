"""The command line's ``data`` part: look for data sets, fetch them, prepare them."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Look after data sets.", no_args_is_help=True)

DataRoot = Annotated[
    Path | None, typer.Option("--data-root", "--root", help="Folder of the data set.")
]


@app.command()
def check(name: str, data_root: DataRoot = None) -> None:
    """List what of a data set is there, what is missing, and how to get it."""
    from uss_utils import datasets

    report = datasets.check(name, data_root)
    typer.echo(str(report))
    if not report.complete:
        raise typer.Exit(1)


@app.command()
def download(name: str, data_root: DataRoot = None) -> None:
    """Fetch a data set that needs no login."""
    from uss_utils.datasets import download as door

    if name != "camvid":
        raise ValueError(
            f"{name!r} is not downloaded by this command; `data check {name}` tells "
            "how to get it. Known here: camvid"
        )
    typer.echo(f"ready: {door.download_camvid(data_root)}")


@app.command("list")
def list_sets() -> None:
    """Name the data sets the package reads."""
    from uss_utils.datasets import DATASETS

    for name, info in DATASETS.items():
        typer.echo(f"{name:16} {info.description}")
