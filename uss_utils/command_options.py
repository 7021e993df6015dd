"""What commands have in common: options that mean the same, and examples.

Examples stand at the end of a command's help, then what to run next; tests check that
every one of them parses.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

DataRoot = Annotated[
    Path | None, typer.Option("--data-root", "--root", help="Folder of the data set.")
]
Weights = Annotated[
    Path | None, typer.Option(help="Your own tiny ViT instead of the shipped one.")
]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", help="FIELD=VALUE of the preset; repeatable."),
]
Crf = Annotated[bool, typer.Option(help="Score with the dense CRF too.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda ...")]
Records = Annotated[Path | None, typer.Option(help="Folder of the records.")]

MODEL = "runs/scenes/models/stego-seed0.safetensors"
# Command -> lines of examples, and what comes next.
EXAMPLES = {
    "environment": (
        ["environment"],
        "Next, the first notebook: python -m uss_utils course 00 --preset smoke",
    ),
    "course": (
        [
            "course --preset smoke",
            "course 03 04 -p SEED=1",
            "course 03 --preset camvid-tiny -p DATA_ROOT=path/to/CamVid",
        ],
        "Next: open runs/PRESET/index.html, or make pages of it: "
        "python -m uss_utils book --notebooks runs/scenes/notebooks",
    ),
    "notebooks": (
        ["notebooks 03", "notebooks"],
        "Next: look at what changed (git diff --stat) and commit it.",
    ),
    "ladder": (
        [
            "ladder",
            "ladder --preset camvid-tiny --data-root path/to/CamVid",
            "ladder --weights runs/mine.safetensors --seeds 1",
        ],
        "Next, a method that learns: python -m uss_utils train stego --seeds 3",
    ),
    "train": (
        [
            "train stego",
            "train hp --preset camvid-tiny --data-root path/to/CamVid",
            "train stego --seeds 3 -s n_train=100 --out runs/fewer",
            f"train primaps -s base={MODEL}",
            "train maskcontrast --precision bf16 --accumulate 2",
        ],
        f"Next, other switches: python -m uss_utils evaluate {MODEL} --no-flip",
    ),
    "estimate": (
        [
            "estimate stego",
            "estimate hp --preset cocostuff27-vits8 --processes 4",
            "estimate hsg --preset camvid-tiny -s batch_size=4 --seconds 90",
        ],
        "Next: python -m uss_utils train stego",
    ),
    "recipes": (
        ["recipes stego", "recipes primaps --preset cityscapes27-vitb8", "recipes"],
        "Next, what it takes here: "
        "python -m uss_utils estimate stego --preset potsdam3-vits8",
    ),
    "evaluate": (
        [
            f"evaluate {MODEL}",
            f"evaluate {MODEL} --fit-map-on eval --crf",
            f"evaluate {MODEL} --classifier-epochs 60",
        ],
        "Next, on your own photographs: "
        f"python -m uss_utils segment photos --model {MODEL} --out segmented",
    ),
    "segment": (
        [
            "segment photos --method stego --clusters 10 --out segmented",
            "segment more --model segmented/model.safetensors --out segmented-more",
        ],
        "Next: open segmented/index.html. Notebook 11 gives the clusters names: "
        "python -m uss_utils course 11",
    ),
    "hierarchy": (
        ["hierarchy runs/scenes/models/hsg-seed0.safetensors photos --out levels"],
        "Next: open overview.png of a picture. Such a model comes from: "
        "python -m uss_utils train hsg",
    ),
    "book": (
        ["book", "book --notebooks runs/scenes/notebooks", "book --check-links"],
        "Next: open the page that it names.",
    ),
    "pretrain": (
        [
            "pretrain --out runs/mine.safetensors",
            "pretrain --out runs/quick.safetensors --images 200 --vicreg-steps 50 "
            "--distil-steps 20",
            "pretrain --out runs/camvid.safetensors --dataset camvid "
            "--image-size 240x320",
        ],
        "Next, what they are worth: "
        "python -m uss_utils ladder --weights runs/mine.safetensors",
    ),
    "data check": (
        ["data check camvid", "data check cityscapes27 --data-root path/to/cityscapes"],
        "Next: the step that the report names.",
    ),
    "data download": (
        ["data download camvid", "data download cocostuff27 --split val"],
        "Next: python -m uss_utils data check camvid",
    ),
    "data list": (["data list"], "Next: python -m uss_utils data check camvid"),
    "data prepare": (
        [
            "data prepare cocostuff27",
            "data prepare voc --no-neighbours",
            "data prepare camvid --size 320 --resample bilinear",
        ],
        "Next: python -m uss_utils train stego --preset cocostuff27-vits8",
    ),
}


def settings_of(words: list[str] | None, **options: Any) -> dict[str, Any]:
    """Settings of a preset, from ``--set`` and from options of their own.

    Args:
        words: FIELD=VALUE each.
        options: by field; None: not given.

    Raises:
        ValueError: a word of another form, or a field that is given twice.
    """
    from uss_utils.notebooks import parse_parameters

    found = parse_parameters(words or [])
    given = {name: value for name, value in options.items() if value is not None}
    twice = sorted(found.keys() & given.keys())
    if twice:
        raise ValueError(
            f"{', '.join(twice)} is given twice, by --set and by an option of its own; "
            "give it once"
        )
    return found | given


def ending(command: str) -> str:
    """End of a command's help: examples, one per line, and what to run next.

    Args:
        command: its name, that of its group before it: "train", "data check".
    """
    examples, following = EXAMPLES[command]
    lines = [f"  python -m uss_utils {example}" for example in examples]
    text, prompt, command = following.partition("python -m uss_utils ")
    lines += ["", "\b", text.rstrip(), *([f"  {prompt}{command}"] if prompt else [])]
    # The marks keep lines as they are, so that they can be copied.
    return "\n".join(["\b", "Examples:", *lines])
