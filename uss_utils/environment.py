"""Device, seeds and what this run stands on."""

import importlib.metadata
import platform
import random
import resource
import sys

import numpy as np
import torch

PACKAGES = ("torch", "torchvision", "timm", "numpy", "scipy", "pydensecrf2")


def pick_device(name: str = "auto") -> torch.device:
    """Turn a name into a device.

    Args:
        name: "auto" (CUDA, else Apple's MPS, else CPU), or any torch device string.

    Raises:
        ValueError: the device is unknown or absent on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"unknown device {name!r}; use 'auto', 'cpu', 'cuda' or 'cuda:1'"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device {name!r} was asked for, but torch sees no CUDA GPU here; "
            "use 'cpu' or 'auto', or install a CUDA build of torch and the driver"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {name!r} was asked for, but there are only "
            f"{torch.cuda.device_count()} GPU(s), numbered from 0"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps' was asked for, but is not available; use 'cpu'")
    return device


def slow_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is emulated there: an x86 CPU without AVX512-BF16 and AMX.

    Other CPUs are given the benefit of the doubt; nothing is measured.
    """
    if device.type != "cpu" or platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    facts = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    known = [getattr(torch.cpu, fact, lambda: True) for fact in facts]
    return not any(fact() for fact in known)


def seed_all(seed: int) -> None:
    """Seed python, numpy and torch. The only place that touches global generators."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries we call may use the global one
    torch.manual_seed(seed)


def generator(seed: int) -> torch.Generator:
    """A CPU generator of its own, so that drawing from it disturbs nothing else."""
    return torch.Generator().manual_seed(seed)


def peak_memory_mb() -> float:
    """Largest resident memory of this process so far, in MB (10^6 bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def versions() -> dict[str, str | None]:
    """Versions of python and of the packages that can change a number."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def report(device: torch.device | None = None) -> str:
    """One readable line about versions, device, threads and memory."""
    device = device or pick_device()
    place = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{torch.get_num_threads()} CPU threads"
    )
    listed = ", ".join(f"{k} {v}" for k, v in versions().items() if v)
    return f"{listed} | device {device} ({place})"
