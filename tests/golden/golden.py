"""Where the recorded pairs of the authors' functions lie, and how to read them."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(
    os.environ.get("USS_GOLDEN")
    or Path(__file__).resolve().parents[3] / "shared" / "golden"
)


def golden_files(method: str, pattern: str) -> list:
    """Parameters for ``pytest.mark.parametrize``: every file of a kind, or one skip."""
    files = sorted((ROOT / method).glob(pattern))
    if files:
        return [pytest.param(path, id=path.stem) for path in files]
    reason = f"no golden pairs {pattern} under {ROOT / method}; set USS_GOLDEN"
    return [pytest.param(None, id=pattern, marks=pytest.mark.skip(reason=reason))]


def load(path: Path) -> dict:
    """All arrays of one file: floats and integers as tensors, scalars as numbers."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: _convert(archive[name]) for name in archive.files}


def _convert(array: np.ndarray):
    if array.ndim == 0:
        return array.item()
    if array.dtype.kind in "US":
        return array.tolist()
    return torch.from_numpy(np.ascontiguousarray(array))


def assert_close(actual: torch.Tensor, expected, tolerance: float) -> None:
    """|difference| <= tolerance * max(1, max|expected|), the pairs' own measure."""
    expected = torch.as_tensor(expected)
    actual = torch.as_tensor(actual)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    scale = max(1.0, float(expected.double().abs().max())) if expected.numel() else 1
    worst = float((actual.double() - expected.double()).abs().max())
    assert worst <= tolerance * scale, f"differs by {worst:.3g}"
