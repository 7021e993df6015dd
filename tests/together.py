"""Trainings of every method by any number of processes, for the test that compares.

As a script, in each process: ``python -m tests.together METHOD,... FOLDER=CASE ...``;
a case is "whole" (train and score), "first" (stop halfway) or "rest" (go on).
"""

import sys
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import torch

from uss_utils import learning, methods, ranks
from uss_utils.checkpoints import save_tensors
from uss_utils.launch import together
from uss_utils.learning import Trained
from uss_utils.runs import score

# Of one batch three images are this process's and two the other's. Features are
# recomputed from images in every step: what is kept is not shared.
CHANGES = {"batch_size": 5, "steps": 4, "seed": 3}
UNKEPT = ("stego", "hp", "ppap", "primaps")


class Halfway(Exception):
    """Ends a training in the middle."""


@contextmanager
def in_double(method):
    """Let a network train in double precision, views included.

    In single precision a ResNet from random weights, and clusters that flip, blow
    rounding up to a per mille within four steps.
    """
    before = method.build, method.seen, learning.finish

    def seen(*args):
        found = before[1](*args)
        if isinstance(found, torch.Tensor):
            return found.double()
        return [x.double() if x.is_floating_point() else x for x in found]

    def finish(name, cfg, material, head, readout, history):
        return before[2](name, cfg, material, head.float(), readout, history)

    method.build = lambda *args: before[0](*args).double()
    method.seen, learning.finish = seen, finish
    try:
        yield
    finally:
        method.build, method.seen, learning.finish = before


def stop(steps, segmenter):
    raise Halfway


def config(name):
    """Smoke settings with uneven shares, twins and student views included."""
    method = methods.load(name)
    changes = CHANGES | ({"cache": "images"} if name in UNKEPT else {})
    return method.Config.preset("smoke", **changes)


def train(name, folder, case):
    """One training; what came of it goes into files of the folder."""
    method, cfg = methods.load(name), config(name)
    material = method.prepare(cfg)
    place = folder / f"{name}.checkpoint.safetensors"
    options = {"checkpoint": place, "checkpoint_every": 1}
    with nullcontext() if name in UNKEPT else in_double(method):
        if case == "first":
            with suppress(Halfway):
                method.train(cfg, material, **options, watch=stop, watch_at=[3])
            return
        done = method.train(cfg, material, **options)
    keep(method, cfg, done, folder / name)


def keep(method, cfg, trained: Trained, folder: Path):
    """Score the models; the first process writes records, weights and history."""
    models = [trained.segmenter, *trained.others.values()]
    val_set = cfg.open("val")
    score(method, cfg, models, folder, val_set)
    if ranks.is_main():
        for k, model in enumerate(models):
            tensors = {
                f"{part}/{key}": value.contiguous()
                for part, module in model.parts().items()
                for key, value in module.state_dict().items()
            }
            history = trained.history.to_json()
            save_tensors(
                folder / f"{k}.safetensors", tensors, {"kind": "kept", "h": history}
            )


def main(names, *jobs):
    torch.set_num_threads(1)
    with together("cpu"):
        for job in jobs:
            folder, case = job.rsplit("=", 1)
            for name in names.split(","):
                train(name, Path(folder), case)


if __name__ == "__main__":
    main(*sys.argv[1:])
