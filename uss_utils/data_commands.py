"""The command line's ``data`` part: look for data sets, fetch them, prepare them."""

from pathlib import Path
from typing import Annotated

import typer

from uss_utils.command_options import DataRoot, Device, ending

app = typer.Typer(
    help="Look after data sets: what is there, fetch it, prepare it.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Name = Annotated[str, typer.Argument(help="A name that `data list` prints.")]


@app.command(epilog=ending("data check"))
def check(name: Name, data_root: DataRoot = None) -> None:
    """Say what of a data set is there and what is missing.

    And how to get it. Reads a sample of the files and writes nothing; exit status 1
    where the set is not complete.
    """
    from uss_utils import datasets

    report = datasets.check(name, data_root)
    typer.echo(str(report))
    if not report.complete:
        raise typer.Exit(1)


@app.command(epilog=ending("data download"))
def download(
    name: Name,
    data_root: DataRoot = None,
    split: Annotated[
        str | None,
        typer.Option(help="Only this split (coco, cocostuff27, voc)."),
    ] = None,
) -> None:
    """Fetch a data set that needs no login.

    Size and licence are told first. Writes into $USS_DATA/NAME (data/NAME), or where
    --data-root says. A broken download is continued by the same command.
    """
    from uss_utils import datasets
    from uss_utils.datasets.camvid_download import download_camvid
    from uss_utils.datasets.coco_download import download_coco, download_cocostuff
    from uss_utils.datasets.voc_download import download_voc

    by_split = {
        "cocostuff27": download_cocostuff,
        "coco": download_coco,
        "voc": download_voc,
    }
    if name in by_split:
        typer.echo(f"ready: {by_split[name](data_root, split)}")
        return
    if split is not None:
        raise ValueError(
            f"--split is for {', '.join(by_split)}; {name} comes as a whole"
        )
    if name == "camvid":
        typer.echo(f"ready: {download_camvid(data_root)}")
        return
    report = datasets.check(name, data_root)
    raise ValueError(
        f"{name} is not downloaded by this command (camvid, {', '.join(by_split)} "
        f"are): {report.step or report.place}. `data check {name}` shows what is there"
    )


@app.command("list", epilog=ending("data list"))
def list_sets() -> None:
    """Name the data sets the package reads.

    Sources, sizes, licences and layouts stand in data/README.md.
    """
    from uss_utils.datasets import DATASETS

    for name, info in DATASETS.items():
        typer.echo(f"{name:16} {info.description}")


@app.command(epilog=ending("data prepare"))
def prepare(
    name: Name,
    data_root: DataRoot = None,
    split: Annotated[str, typer.Option(help="Split that is prepared.")] = "train",
    crops: Annotated[
        bool | None,
        typer.Option(
            help="Five crops per image; by default where training reads them."
        ),
    ] = None,
    neighbours: Annotated[
        bool, typer.Option(help="Lists of the most similar images.")
    ] = True,
    backbone: Annotated[
        str, typer.Option(help="Whose features say what is similar.")
    ] = "vit_tiny_scenes",
    weights: Annotated[
        Path | None, typer.Option(help="Your own weights of that backbone.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="N cuts the square centre, HxW resizes; stored sets: 224."),
    ] = None,
    resample: Annotated[
        str | None,
        typer.Option(help="nearest, as STEGO does (default), bilinear, tensor, cubic."),
    ] = None,
    k: Annotated[int, typer.Option(help="Length of a list, the image included.")] = 8,
    processes: Annotated[
        int | None, typer.Option(help="For files; one per core if not given.")
    ] = None,
    device: Device = "auto",
) -> None:
    """Make what training reads beside the images.

    A killed run is continued. Five crops per image go into ROOT/cropped, lists of
    similar images into $USS_DATA/cache/neighbours. Also cuts Potsdam's tiles, and makes
    VOC's trainaug.
    """
    from uss_utils import preparation

    done = preparation.prepare(
        name,
        split,
        data_root,
        crops=crops,
        neighbours=neighbours,
        backbone=backbone,
        weights=weights,
        size=_size(size),
        resample=resample,
        k=k,
        processes=processes,
        device=device,
    )
    typer.echo("\n".join(done))


def _size(text: str | None) -> int | tuple[int, int] | None:
    words = text.lower().split("x") if text else []
    if len(words) > 2 or not all(word.isdecimal() for word in words):
        raise ValueError(f"a size is given as N or HxW, such as 224; got {text}")
    numbers = tuple(map(int, words))
    return numbers[0] if len(numbers) == 1 else numbers or None
