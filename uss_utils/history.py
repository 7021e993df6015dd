"""The figures of a training run, and how they are shown while it runs."""

import math
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm.auto import tqdm


@dataclass
class History:
    """Rows of figures, one per logged step.

    Attributes:
        rows: ``{"step": 9, "loss": 1.5, ..., "lr": 1e-3}``, steps from 0; figures that
            were not finite are None. Two runs with the same seed have equal rows.
        seconds: time spent in steps, over all resumptions; not compared.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = field(default=0.0, compare=False)

    def __len__(self) -> int:
        return len(self.rows)

    def names(self) -> list[str]:
        """Names of all figures, in order of appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def series(self, name: str) -> np.ndarray:
        """One figure over the rows that have it, float64; None becomes NaN.

        Raises:
            ValueError: no row has it; the message lists those there are.
        """
        found = [row[name] for row in self.rows if name in row]
        if not found:
            raise ValueError(
                f"no figure {name!r} in this history; it has {self.names()}"
            )
        return np.array([math.nan if v is None else v for v in found], dtype=float)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able object that :meth:`from_json` takes back."""
        return {"rows": self.rows, "seconds": round(self.seconds, 3)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "History":
        """Inverse of :meth:`to_json`.

        Raises:
            ValueError: it is none.
        """
        rows, seconds = content["rows"], content["seconds"]
        if not isinstance(seconds, int | float) or not isinstance(rows, list):
            raise ValueError("its history holds no rows of figures")
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("its history holds no rows of figures")
        return cls(rows, seconds)


def figure(value: float) -> float | None:
    """A figure as a row holds it: None where it is not finite (JSON has no NaN)."""
    if isinstance(value, int):
        return int(value)
    return float(value) if math.isfinite(value) else None


class Progress:
    """Shows how far a run is.

    Args:
        mode: "bar" (tqdm), "lines" (one printed line per 10 %, which reads well in a
            committed notebook), None or False (nothing), True ("bar" on a terminal,
            else "lines").
        start: steps done before.
        total: steps of the whole run.

    Raises:
        ValueError: the mode is unknown.
    """

    def __init__(self, mode: str | bool | None, start: int, total: int):
        if mode is True:
            mode = "bar" if sys.stderr.isatty() else "lines"
        if mode not in ("bar", "lines", None, False):
            raise ValueError(
                f"unknown progress {mode!r}; use 'bar', 'lines', None, True or False"
            )
        self.start, self.total, self.lines = start, total, mode == "lines"
        self.begun = time.perf_counter()
        self.bar = (
            tqdm(total=total, initial=start, unit="step", dynamic_ncols=True)
            if mode == "bar"
            else None
        )

    def show(self, done: int, row: dict[str, Any]) -> None:
        """Report ``done`` finished steps and the figures of the last one."""
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {row['loss']:.4g}", refresh=False)
            self.bar.update()
        elif self.lines and 10 * done // self.total > 10 * (done - 1) // self.total:
            rate = (time.perf_counter() - self.begun) / max(done - self.start, 1)
            left = (
                "done" if done == self.total else f"{rate * (self.total - done):.0f} s"
            )
            print(
                f"{100 * done // self.total:3d} %  step {done}/{self.total}  "
                f"loss {row['loss']:.4g}  {'' if left == 'done' else 'left '}{left}",
                flush=True,
            )

    def close(self) -> None:
        """Finish the bar."""
        if self.bar is not None:
            self.bar.close()
