"""What a device can do at best: matrix products by precision, and copies."""

import contextlib
from collections.abc import Iterator, Sequence

import torch

from tests.benchmarks.timing import wall_seconds
from uss_utils.environment import pick_device


@contextlib.contextmanager
def precision_of(name: str) -> Iterator[str]:
    """Switches of a precision; gives the training loop's word for it."""
    matmul, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolutions.allow_tf32
    matmul.allow_tf32 = convolutions.allow_tf32 = name == "tf32"
    try:
        yield "bf16" if name == "bf16" else "no"
    finally:
        matmul.allow_tf32, convolutions.allow_tf32 = before


def ceilings(
    device: str, matrix: int, copied: int, precisions: Sequence[str]
) -> dict[str, float]:
    """What this device can: operations per second by precision, and bytes per second.

    Args:
        device: where.
        matrix: rows and columns of the matrices.
        copied: bytes read and written by the copy.
        precisions: names.
    """
    place = pick_device(device)
    wait = torch.cuda.synchronize if place.type == "cuda" else lambda: None

    def per_second(amount: float, call) -> float:
        def timed() -> None:
            call()
            wait()

        timed()
        return amount / wall_seconds(timed, 10)

    found = {}
    for name in precisions:
        kind = torch.bfloat16 if name == "bf16" else torch.float32
        a = torch.randn(matrix, matrix, device=place).to(kind)
        out = torch.empty_like(a)
        with precision_of(name):
            amount = 2 * matrix**3
            found[name] = per_second(amount, lambda a=a, o=out: torch.mm(a, a, out=o))
    source = torch.ones(copied // 2, dtype=torch.uint8, device=place)
    target = torch.empty_like(source)
    found["copy"] = per_second(copied, lambda: target.copy_(source))
    return found
