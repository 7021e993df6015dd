"""A method's training as its settings say, and what it has to beat: no training.

Between :func:`uss_utils.learning.prepare` and :func:`uss_utils.learning.finish`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from uss_utils.environment import generator
from uss_utils.learning import Material, Trained, Watch, finish
from uss_utils.recipe import LearnedRecipe
from uss_utils.run_state import own_random_state
from uss_utils.segmenter import Segmenter
from uss_utils.training import History, Step, fit

CALIBRATION = 20  # batches from which an untrained network takes its statistics

Loss = Callable[[nn.Module, Any, Step], dict[str, Tensor]]


def run(
    cfg: LearnedRecipe,
    material: Material,
    model: nn.Module,
    loss: Loss,
    data: Any,
    current: Callable[[], Segmenter] | None = None,
    *,
    watch: Watch | None = None,
    watch_at: Sequence[int] = (),
    **options: Any,
) -> History:
    """:func:`uss_utils.training.fit` as the settings say.

    Args:
        cfg: steps, batch size, precision and seed; incomplete batches are left out.
        material: says where to train.
        model: see :func:`~uss_utils.training.fit`; so are the next two.
        loss: of a batch.
        data: by index.
        current: makes the segmenter as it stands, for ``watch``.
        watch: called with a number of steps and the model as it stands then.
        watch_at: the numbers of steps, 0 to ``steps``.
        options: further arguments, which win over those named here.

    Returns:
        The figures of the training.
    """
    if watch is not None and 0 in watch_at:
        watch(0, current())
    settings = {
        "steps": cfg.steps,
        "batch_size": cfg.batch_size,
        "drop_last": True,
        "accumulate": cfg.accumulate,
        "precision": cfg.precision,
        "seed": cfg.seed,
        "device": material.device,
        "on_step": watcher(watch, watch_at, current),
        "config": cfg.of_training(),
    }
    return fit(model, loss, data, **settings | options)


def untrained(
    method: str,
    cfg: LearnedRecipe,
    material: Material,
    data: Any,
    head: nn.Module,
    see: Callable[[Any], Any],
) -> Trained:
    """A network before its first step, clustered and probed as a trained one.

    The statistics of its batch norms are those of training batches, as after training:
    without them it would look worse than it is.

    Args:
        method: the method's module.
        cfg: the settings.
        material: from :func:`prepare`.
        data: has ``len`` and ``draw(indices, generator)``, as for training.
        head: of the untrained network, in training mode.
        see: lets the network see a batch that lies on the training device.
    """
    draw = generator(cfg.seed)
    # Dropout draws from the global generators.
    with own_random_state(cfg.seed, material.device), torch.no_grad():
        for _ in range(CALIBRATION):
            rows = torch.randint(len(data), (cfg.batch_size,), generator=draw)
            see(send_to_device(data.draw(rows, draw), material.device))
    readout = material.readout(cfg, head.dim)
    done = finish(method, cfg, material, head, readout, History())
    done.segmenter.meta |= {"name": f"{method}, untrained", "steps": 0}
    return done


def watcher(
    watch: Watch | None,
    watch_at: Sequence[int],
    current: Callable[[], Segmenter],
) -> Callable[[int, nn.Module, dict[str, Any]], None] | None:
    """``on_step`` of a training: shows the model after some numbers of steps.

    Args:
        watch: called with the number of steps done and the model.
        watch_at: numbers of steps.
        current: makes the model as it stands.
    """
    if watch is None:
        return None
    moments = set(watch_at)

    def on_step(index: int, model: nn.Module, row: dict[str, Any]) -> None:
        if index + 1 in moments:
            watch(index + 1, current())

    return on_step
