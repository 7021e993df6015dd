"""All that a training run has to put back to go on as if it had never stopped."""

import atexit
import json
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    GradScalerKwargs,
)
from torch import nn
from torch.optim import Optimizer

from uss_utils import ranks
from uss_utils.checkpoints import flatten, load_tensors, save_tensors, unflatten
from uss_utils.environment import pick_device, seed_all, slow_bf16
from uss_utils.history import History
from uss_utils.resumable import explained, locked
from uss_utils.schedules import EMA

KIND = "training checkpoint"
# Optimisers whose state has the shape of the weights.
_SHAPED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
_SINGLETONS = (AcceleratorState, PartialState, GradientState)


@contextmanager
def own_accelerator(
    precision: str,
    device: str | torch.device | None = None,
    scaler: dict[str, Any] | None = None,
) -> Iterator[Accelerator]:
    """An Accelerator whose settings are its own.

    Accelerate keeps device and precision in process-wide singletons and refuses a
    second Accelerator with others. Here they are set aside and put back, so that runs
    of different precision follow each other, or nest, in one notebook.

    Args:
        precision: "no", "bf16" or "fp16".
        device: None takes the best one; with several processes accelerate decides.
        scaler: options of torch.amp.GradScaler.

    Raises:
        ValueError: the precision is unknown, or the device is absent or cannot do it.
    """
    if precision not in ("no", "bf16", "fp16"):
        raise ValueError(f"unknown precision {precision!r}; use 'no', 'bf16' or 'fp16'")
    wanted = pick_device("auto" if device is None else str(device))
    if precision == "bf16" and slow_bf16(wanted):
        # Python shows a warning of one text and place once per process.
        warnings.warn(
            "precision 'bf16' is much slower than 'no' on this CPU, which "
            "only emulates it; choose precision 'no' (--precision no)",
            stacklevel=2,
        )
    shared = [kind._shared_state for kind in _SINGLETONS]
    before = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    place = torch.cuda.device(wanted) if wanted.index is not None else nullcontext()
    try:
        with place if wanted.type == "cuda" else nullcontext():
            accelerator = Accelerator(
                cpu=wanted.type == "cpu",
                mixed_precision=precision,
                # Explicit, because it could come from an environment variable.
                gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
                kwargs_handlers=[
                    GradScalerKwargs(**(scaler or {})),
                    DistributedDataParallelKwargs(find_unused_parameters=True),
                ],
            )
            if accelerator.num_processes > 1:
                # Without it a worker thread of the group aborts the ending process.
                atexit.register(_leave_group)
            if precision == "fp16" and accelerator.scaler is None:
                raise ValueError(
                    f"precision 'fp16' does not work on {accelerator.device}; "
                    "use 'bf16' or 'no'"
                )
            yield accelerator
    finally:
        for state, content in zip(shared, before, strict=True):
            state.clear()
            state.update(content)


def _leave_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def own_random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global generators for a while, then put them back as they were."""
    before = random_state(device)
    seed_all(seed)
    try:
        yield
    finally:
        set_random_state(before, device)


def random_state(device: torch.device) -> dict[str, Any]:
    """State of the global generators of python, numpy, torch and the device."""
    state = np.random.get_state(legacy=False)  # noqa: NPY002 - libraries may use it
    version, numbers, gauss = random.getstate()
    return {
        "python": (version, torch.tensor(numbers), gauss),
        "numpy": {
            "key": torch.from_numpy(state["state"]["key"].astype(np.int64)),
            "pos": int(state["state"]["pos"]),
            "has_gauss": int(state["has_gauss"]),
            "gauss": float(state["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Inverse of :func:`random_state`."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    bits = state["numpy"]
    np.random.set_state(  # noqa: NPY002
        {
            "bit_generator": "MT19937",
            "state": {"key": bits["key"].numpy().astype(np.uint32), "pos": bits["pos"]},
            "has_gauss": bits["has_gauss"],
            "gauss": bits["gauss"],
        }
    )
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


def describe_optimisers(optimisers: dict[str, Optimizer]) -> dict[str, Any]:
    """Class and options of every optimiser: what a resumed run has to share."""
    return {
        name: {
            "class": type(optimiser).__name__,
            "groups": [
                {k: v for k, v in group.items() if k != "params"}
                | {"parameters": len(group["params"])}
                for group in optimiser.param_groups
            ],
        }
        for name, optimiser in optimisers.items()
    }


class RunState:
    """Everything that a step changes, and the file it is kept in.

    Args:
        path: checkpoint file; None keeps none.
        settings: JSON-able; a checkpoint made with others is refused.
        accelerator: of the run.
        model: trained module.
        optimisers: by name.
        averages: by name.
        generator: the run's own generator.
    """

    def __init__(
        self,
        path: str | Path | None,
        settings: dict[str, Any],
        accelerator: Accelerator,
        model: nn.Module,
        optimisers: dict[str, Optimizer],
        averages: dict[str, EMA],
        generator: torch.Generator,
    ):
        self.path = None if path is None else Path(path)
        # Tuples become lists here as they do in the file.
        self.settings = json.loads(json.dumps(settings, default=str))
        self.accelerator = accelerator
        self.parts = {"model": model}
        self.parts |= {f"optimiser {name}": part for name, part in optimisers.items()}
        inside = set(map(id, model.modules()))  # a teacher is in the model's own state
        self.parts |= {
            f"ema {name}": part
            for name, part in averages.items()
            if id(part.module) not in inside
        }
        if accelerator.scaler is not None:
            self.parts["scaler"] = accelerator.scaler
        self.generator = generator
        self.saved: int | None = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The checkpoint is this run's alone; another run into it waits for the end.

        It then finds the work done, instead of doing it twice or, when it lags behind,
        putting an older state in the place of a newer one.

        Raises:
            OSError: nothing can be written beside the checkpoint.
        """
        mine = self.path is not None and self.accelerator.is_main_process
        if mine:
            with explained(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
        name = f".{self.path.name}.lock" if mine else ""
        with locked(self.path.parent, name) if mine else nullcontext():
            self.accelerator.wait_for_everyone()
            yield

    def save(self, done: int, history: History) -> None:
        """Write the checkpoint after ``done`` steps (first process only)."""
        if self.path is None or self.saved == done:
            return
        if self.accelerator.is_main_process:
            parts = {name: part.state_dict() for name, part in self.parts.items()}
            tensors, tree = flatten({"parts": parts, "draws": self._draws()})
            meta = {
                "kind": KIND,
                "step": done,
                "settings": self.settings,
                "history": history.to_json(),
                "tree": tree,
            }
            save_tensors(self.path, tensors, meta)
        self.saved = done

    def resume(self) -> tuple[int, History]:
        """Put the checkpoint's content back, if there is one.

        Returns:
            Number of steps done and the history of them.

        Raises:
            ValueError: the file is damaged, foreign, of other settings, or not all
                processes see it.
        """
        there = self.path is not None and self.path.exists()
        if ranks.everywhere(not there):
            return 0, History()
        if not ranks.everywhere(there):
            raise ValueError(
                f"not all machines see the checkpoint {self.path}: --out has to name a "
                "folder that they share"
            )
        tensors, meta = load_tensors(self.path, kind=KIND)
        self._compare(meta.get("settings"))
        try:
            found = self._restored(unflatten(tensors, meta["tree"]), meta)
        except Exception as error:  # noqa: BLE001 - what does not fit fails in every way
            reason = " ".join(str(error).split())[:300]  # torch's is spread over lines
            raise ValueError(
                f"the checkpoint {self.path} is of another model ({reason}). Delete "
                "it, or give another file"
            ) from error
        self.saved = found[0]
        return found

    def _restored(
        self, state: dict[str, Any], meta: dict[str, Any]
    ) -> tuple[int, History]:
        """Put a file's state back; raises what it likes where that does not fit."""
        step, history = meta["step"], History.from_json(meta["history"])
        last = self.settings.get("steps", step)
        if not isinstance(step, int) or not 0 <= step <= last:
            raise ValueError(f"it ends after {step} of {last} steps")
        for name, part in self.parts.items():
            if isinstance(part, Optimizer):
                _check_optimiser(part, state["parts"][name])
            part.load_state_dict(state["parts"][name])
        wrong = [k for k, v in self._numbers() if not bool(v.isfinite().all())]
        if wrong:
            raise ValueError(f"{wrong[0]} contains NaN or infinite values")
        # One state for all: processes draw alike, so any number of them can go on.
        draws = state["draws"]
        self.generator.set_state(draws["run"])
        set_random_state(draws["global"], self.accelerator.device)
        return step, history

    def _numbers(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self.parts["model"].named_parameters()

    def _draws(self) -> dict[str, Any]:
        return {
            "run": self.generator.get_state(),
            "global": random_state(self.accelerator.device),
        }

    def _compare(self, stored: dict[str, Any]) -> None:
        old, new = _leaves(stored), _leaves(self.settings)
        differing = [
            f"{name} was {_shown(old, name)}, is {_shown(new, name)}"
            for name in sorted(old.keys() | new.keys())
            if _shown(old, name) != _shown(new, name)
        ]
        if len(differing) > 8:
            differing[8:] = [f"and {len(differing) - 8} more"]
        if differing:
            raise ValueError(
                f"the checkpoint {self.path} was made with other settings: "
                f"{'; '.join(differing)}. Use those to continue it, or delete it, or "
                "give another file"
            )


def _leaves(node: Any, path: str = "") -> dict[str, Any]:
    """Nested JSON as one level: {"optimisers.head.class": "Adam", ...}."""
    if not isinstance(node, dict | list) or not node:
        return {path: node}
    pairs = node.items() if isinstance(node, dict) else enumerate(node)
    found: dict[str, Any] = {}
    for key, value in pairs:
        found |= _leaves(value, f"{path}.{key}" if path else str(key))
    return found


def _shown(leaves: dict[str, Any], name: str) -> str:
    return repr(leaves[name])[:100] if name in leaves else "absent"


def _check_optimiser(optimiser: Optimizer, stored: dict[str, Any]) -> None:
    """Refuse options and states that would only fail in the middle of a step.

    Raises:
        ValueError: options of other types, or a state of another shape.
    """
    fresh = optimiser.state_dict()["param_groups"]
    for own, group in zip(fresh, stored["param_groups"], strict=True):
        for name, value in own.items():
            kinds = (int, float) if type(value) is float else type(value)
            if name != "initial_lr" and not isinstance(group[name], kinds):
                raise ValueError(f"{name} of an optimiser is {group[name]!r}")
    shapes = [p.shape for group in optimiser.param_groups for p in group["params"]]
    for index, values in stored["state"].items():
        for name, value in values.items():
            told = value.shape if isinstance(value, torch.Tensor) else ()
            if len(told) and isinstance(optimiser, _SHAPED) and told != shapes[index]:
                raise ValueError(f"{name} of an optimiser has shape {tuple(told)}")
