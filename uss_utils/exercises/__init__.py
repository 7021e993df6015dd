"""Checks of the notebooks' exercises, one module per notebook.

A check is a function without arguments that yields ``(arguments, expected)``: the
learner's function is called with ``arguments`` and its result compared with
``expected`` (a value, compared up to rounding, or a function ``got -> complaint``,
empty when the result is right). Solutions stay in the notebooks, collapsed; the tests
run them against these checks.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

Cases = Callable[[], Iterator[tuple[tuple, Any]]]
_CHECKS: dict[str, Cases] = {}


def register(name: str) -> Callable[[Cases], Cases]:
    """Make a generator of cases known under the name of its exercise.

    Raises:
        ValueError: another module registered the name already.
    """

    def keep(cases: Cases) -> Cases:
        other = _CHECKS.get(name)
        if other is not None and other.__module__ != cases.__module__:
            raise ValueError(
                f"exercise {name!r} is registered in {other.__module__} already; "
                "choose another name"
            )
        _CHECKS[name] = cases
        return cases

    return keep


def registry() -> dict[str, Cases]:
    """All checks by name; the modules of this folder are imported at first use."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return dict(_CHECKS)
