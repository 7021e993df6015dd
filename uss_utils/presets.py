"""What every method's ``Config`` has in common: presets, overrides and checks.

A method module defines a frozen dataclass and, beside it, a table of presets::

    @dataclass(frozen=True)
    class Config(PresetConfig):
        steps: int = 300

    PRESETS = presets(smoke=Config(steps=5), scenes=Config())

``Config.preset("scenes", steps=50)`` then finds the table of its own module.
"""

import difflib
import math
import sys
import types
import typing
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

Self = TypeVar("Self", bound="PresetConfig")
_ELSEWHERE = ("seed", "root", "crf", "limit_crf")


class Range(NamedTuple):
    """Where a number has to lie; stands in an annotation: ``Annotated[int, Range(1)]``.

    Attributes:
        low: least value.
        high: largest value.
        above: ``low`` itself is left out.
        below: ``high`` itself is left out.
    """

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False

    def __contains__(self, value: object) -> bool:
        low = self.low < value if self.above else self.low <= value
        return low and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"be above {self.low}" if self.above else f"be at least {self.low}"
        left, right = "(" if self.above else "[", ")" if self.below else "]"
        return f"lie in {left}{self.low}, {self.high}{right}"


Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
NotNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
LessThanAll = Annotated[float, Range(0, 1, below=True)]
# More than any image or network has, and little enough to be asked for by mistake.
Pixels = Annotated[int, Range(1, 32_768)]
Channels = Annotated[int, Range(1, 65_536)]


@dataclass(frozen=True)
class PresetConfig:
    """Base of all method settings. Types, choices and ranges are checked when made.

    A field's annotation says all: its type, its choices (``Literal``), its range
    (:data:`Count`, :data:`Share` and so on). Numbers are finite in any case.

    Attributes:
        name: the preset these settings started from.
        seed: of everything the method draws, of 32 bits.
        root: folder of a stored data set; None: its place under the data folder. A
            matter of the machine, never recorded.
        weights: your own file of backbone weights; None: the backbone's usual ones.
        files: names of the fields that name a file or folder. Where it lies is a matter
            of the machine as well: only its name is recorded.
    """

    files: ClassVar[tuple[str, ...]] = ("weights",)
    name: str = "custom"
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    root: str | Path | None = None
    weights: str | Path | None = None

    def __post_init__(self) -> None:
        """Check every field against its annotation.

        Raises:
            ValueError: a value has the wrong type, is none of the known choices, or
                lies out of its range.
        """
        check_fields(self)

    @classmethod
    def preset(cls: type[Self], name: str, /, **overrides: Any) -> Self:
        """Settings by name, with single fields replaced.

        Args:
            name: key of the module's ``PRESETS``.
            overrides: as in :meth:`override`.

        Raises:
            ValueError: the preset or a field is unknown; the message lists the known.
        """
        table = cls._table()
        if not isinstance(name, str) or name not in table:
            raise ValueError(unknown("preset", name, table))
        return table[name].override(**overrides)

    def override(self: Self, **changes: Any) -> Self:
        """A copy with some fields replaced; a value of None leaves the field alone.

        None means "as the preset says", so that notebook parameters can be handed on
        unconditionally: ``cfg.override(steps=STEPS, seed=SEED)``.

        Raises:
            ValueError: a field is unknown or a value does not fit.
        """
        known = [field.name for field in fields(self) if field.name != "name"]
        for name in changes:
            if name not in known:
                raise ValueError(unknown("setting", name, known))
        return replace(self, **{k: v for k, v in changes.items() if v is not None})

    def overrides(self) -> dict[str, Any]:
        """Fields that differ from the preset of the same name, for the record.

        What stands elsewhere in a record (seed, CRF) is left out; of files only the
        name is told, of the data folder nothing.
        """
        preset = self._table().get(self.name)
        if preset is None:
            return {}
        mine, base = self.portable(), preset.portable()
        changed = {k: v for k, v in mine.items() if v != base[k]}
        return {k: v for k, v in changed.items() if k not in _ELSEWHERE}

    def portable(self) -> dict[str, Any]:
        """All fields, of files only the name: alike on every machine but for root."""
        values = asdict(self)
        named = {k: Path(values[k]).name for k in self.files if values[k] is not None}
        return values | named

    @classmethod
    def _table(cls) -> dict[str, Any]:
        # A subclass made in a notebook has no table of its own: ask its parents'.
        for parent in cls.__mro__:
            table = getattr(sys.modules.get(parent.__module__), "PRESETS", None)
            if table is not None:
                return table
        return {}


def presets(**table: Self) -> dict[str, Self]:
    """Table of presets, each told its own name; ``_`` in a key is written ``-``."""
    named = {key.replace("_", "-"): config for key, config in table.items()}
    return {key: replace(config, name=key) for key, config in named.items()}


def check_fields(settings: Any) -> None:
    """Check every field of a dataclass against its annotation; lists become tuples.

    Raises:
        ValueError: a value has the wrong type, is none of the known choices, or lies
            out of its range.
    """
    hints = typing.get_type_hints(type(settings), include_extras=True)
    for field in fields(settings):
        value = _as_tuple(getattr(settings, field.name))
        object.__setattr__(settings, field.name, value)
        hint = hints[field.name]
        if not _fits(value, hint):
            raise ValueError(
                f"{field.name}={_shown(value)} does not fit: expected {_describe(hint)}"
            )
        wrong = _out_of_range(value, hint)
        if wrong is not None:
            verb = "have" if isinstance(value, tuple) else "has"
            raise ValueError(f"{field.name}={_shown(value)} {verb} to {wrong}")


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Message for a name that is not in a table: the known ones and a near miss."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown {what} {_shown(name)}, known are: {', '.join(known)}{hint}"


def _shown(value: Any, most: int = 200) -> str:
    """A value for a message: one line, and not a long one."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python writes out integers of 4300 digits at most
        text = f"an {type(value).__name__} with too many digits"
    return text if len(text) <= most else text[:most] + "..."


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def _plain(hint: Any) -> Any:
    """An annotation without its range."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _options(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has the annotated type (plain types, unions, tuples, Literal)."""
    hint = _plain(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return isinstance(value, str | int) and value in arguments
    if len(_options(hint)) > 1:
        return any(_fits(value, option) for option in _options(hint))
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is Ellipsis:
            return all(_fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if hint in (int, float):
        kinds = int if hint is int else int | float
        number = isinstance(value, kinds) and not isinstance(value, bool)
        # Integers that 64 bits do not hold overflow somewhere behind.
        most = 2**63 - 1 if hint is int else sys.float_info.max
        return number and abs(value) <= most
    return isinstance(value, hint)


def _out_of_range(value: Any, hint: Any) -> Range | None:
    """The range that a value of the right type lies outside of."""
    hint = next(option for option in _options(hint) if _fits(value, option))
    if typing.get_origin(hint) is tuple:
        arguments = typing.get_args(hint)
        if arguments[-1] is Ellipsis:
            arguments = arguments[:1] * len(value)
        wrong = map(_out_of_range, value, arguments)
        return next((found for found in wrong if found is not None), None)
    ranges = getattr(hint, "__metadata__", ())
    return next((found for found in ranges if value not in found), None)


def _describe(hint: Any) -> str:
    hint = _plain(hint)
    if typing.get_origin(hint) is Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(hint))
    if len(_options(hint)) > 1:
        return " or ".join(map(_describe, _options(hint)))
    if typing.get_origin(hint) is tuple:
        parts = ("..." if a is ... else _describe(a) for a in typing.get_args(hint))
        return f"tuple of ({', '.join(parts)})"
    if hint is type(None):
        return "None"
    return hint.__name__ if isinstance(hint, type) else str(hint)
