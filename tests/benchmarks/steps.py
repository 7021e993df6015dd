"""What one training step takes: time, memory, operations, and where they go."""

import contextlib
import copy
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import accelerate
import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.optim import optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks.timing import Peak
from tests.benchmarks.trainings import Training
from uss_utils.heads import SegmentationHead
from uss_utils.hierarchy_network import HSGNet
from uss_utils.last_block import BlockHead
from uss_utils.methods._primaps_em import PrototypeHead
from uss_utils.pixel_embedder import PixelEmbedder
from uss_utils.probes import ClusterProbe, LinearProbe
from uss_utils.resnets import DilatedResNet
from uss_utils.vit import Backbone

PARTS = ("data", "backbone", "head", "loss", "backward", "optimiser")
NETWORKS = (Backbone, DilatedResNet)
HEADS = (SegmentationHead, BlockHead, PrototypeHead, ClusterProbe, LinearProbe)
TOP = 6  # kernels that are named
ALIASES = ("empty", "_unsafe_view", "detach")  # operations that touch no number


def step_seconds(work: Training, warm: int, timed: int, **changes: Any) -> float:
    """Median seconds by the clock of a step, data included.

    Args:
        work: the training.
        warm: steps before.
        timed: steps that count.
        changes: of the training's options.
    """
    moments = []

    def on_step(*_: Any) -> None:
        work.synchronise()
        moments.append(time.perf_counter())

    work.run(warm + timed, on_step=on_step, **changes)
    last = moments[warm - 1 :]
    taken = sorted(b - a for a, b in zip(last, last[1:], strict=False))
    return taken[len(taken) // 2]


def peak_memory(work: Training, **changes: Any) -> float:
    """GB at the peak of two steps: of the GPU, or of the process."""
    if work.device.type != "cuda":
        with Peak() as peak:
            work.run(2, **changes)
        return peak.top / 1e9
    torch.cuda.reset_peak_memory_stats(work.device)
    work.run(2, **changes)
    return torch.cuda.max_memory_allocated(work.device) / 1e9


class Traffic(TorchDispatchMode):
    """Bytes that operations on a device read and write, if no cache spares any."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device, self.bytes = device.type, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run the operation and count its tensors."""
        found = func(*args, **(kwargs or {}))
        alias = any(word in str(func) for word in ALIASES)
        if not alias and not getattr(func, "is_view", False):
            for x in tree_leaves((args, kwargs, found)):
                if isinstance(x, Tensor) and x.device.type == self.device:
                    self.bytes += min(x.nbytes, x.untyped_storage().nbytes())
        return found


def work_of_a_step(work: Training, **changes: Any) -> tuple[int, int]:
    """Operations of matrix products and convolutions, and bytes, of one step."""
    with FlopCounterMode(display=False) as counter, Traffic(work.device) as traffic:
        work.run(1, **changes)
    return counter.get_total_flops(), traffic.bytes


class Stopwatch:
    """Where the time goes: each moment counts for the innermost part that is open."""

    def __init__(self, synchronise: Callable[[], None]):
        self.spent: Counter[str] = Counter()
        self.open: list[str] = []
        self.synchronise, self.first, self.mark = synchronise, None, 0.0

    def begin(self, part: str) -> None:
        """Open a part."""
        self._count()
        self.open.append(part)

    def end(self) -> None:
        """Close the part that was opened last."""
        self._count()
        self.open.pop()

    def _count(self) -> None:
        self.synchronise()
        now = time.perf_counter()
        if self.open:
            self.spent[self.open[-1]] += now - self.mark
        self.first = now if self.first is None else self.first
        self.mark = now

    def shares(self) -> dict[str, float]:
        """Of the time from the first part's begin to the last one's end."""
        whole = self.mark - self.first
        found = {part: self.spent[part] / whole for part in PARTS}
        return found | {"rest": max(0.0, 1 - sum(found.values()))}

    def around(self, part: str, function: Callable) -> Callable:
        """The function, timed."""

        def timed(*args: Any, **options: Any) -> Any:
            self.begin(part)
            try:
                return function(*args, **options)
            finally:
                self.end()

        return timed


def where_time_goes(work: Training, steps: int, **changes: Any) -> dict[str, float]:
    """Shares of a step's time by part; the device is waited for at every border."""
    watch = Stopwatch(work.synchronise)
    data = copy.copy(work.data)
    data.draw = watch.around("data", data.draw)
    timed = copy.copy(work)
    timed.loss = watch.around("loss", work.loss)
    hooks = [
        optimizer.register_optimizer_step_pre_hook(lambda *_: watch.begin("optimiser")),
        optimizer.register_optimizer_step_post_hook(lambda *_: watch.end()),
    ]
    backward = watch.around("backward", accelerate.Accelerator.backward)
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            mock.patch.object(accelerate.Accelerator, "backward", backward)
        )
        for part, module in _modules(work):
            forward = watch.around(part, module.forward)
            stack.enter_context(mock.patch.object(module, "forward", forward))
        for hook in hooks:
            stack.callback(hook.remove)
        timed.run(steps, data, prefetch=0, **changes)
    return watch.shares()


def _modules(work: Training) -> Iterator[tuple[str, nn.Module]]:
    """Modules whose forward pass is a part of its own."""
    both = nn.ModuleList([work.model, work.frozen])
    for module in both.modules():
        if isinstance(module, NETWORKS):
            yield "backbone", module
        elif isinstance(module, HEADS):
            yield "head", module
        elif isinstance(module, PixelEmbedder | HSGNet):
            for child in module.children():
                if not isinstance(child, NETWORKS) and not isinstance(child, HEADS):
                    yield "head", child


def top_kernels(
    work: Training, steps: int, **changes: Any
) -> tuple[float, list[tuple[str, float]]]:
    """How long the device computes in a step, and what takes most of it.

    Returns:
        Seconds per step, and (operation, its share of them), longest first.
    """
    on_gpu = work.device.type == "cuda"
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] * on_gpu
    with torch.profiler.profile(activities=kinds, acc_events=True) as profiler:
        work.run(steps, **changes)
        work.synchronise()
    name = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    # Kernels are listed a second time as events of the GPU itself.
    events = [e for e in profiler.key_averages() if e.device_type == DeviceType.CPU]
    spent = {e.key: getattr(e, name) / 1e6 for e in events}
    total = sum(spent.values()) or 1.0
    first = sorted(spent, key=spent.get, reverse=True)[:TOP]
    return total / steps, [(key[:60], spent[key] / total) for key in first]
