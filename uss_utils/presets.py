"""What every method's ``Config`` has in common: presets, overrides and checks.

A method module defines a frozen dataclass and, beside it, a table of presets::

    @dataclass(frozen=True)
    class Config(PresetConfig):
        steps: int = 300

    PRESETS = presets(smoke=Config(steps=5), scenes=Config())

``Config.preset("scenes", steps=50)`` then finds the table of its own module.
"""

import difflib
import sys
import types
import typing
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

Self = TypeVar("Self", bound="PresetConfig")
_ELSEWHERE = ("seed", "root", "crf", "limit_crf")


@dataclass(frozen=True)
class PresetConfig:
    """Base of all method settings. Types and choices are checked on construction.

    Attributes:
        name: the preset these settings started from.
        seed: of everything the method draws.
        root: folder of a stored data set; None: its place under the data folder. A
            matter of the machine, never recorded.
        weights: your own file of backbone weights; None: the backbone's usual ones.
        files: names of the fields that name a file or folder. Where it lies is a matter
            of the machine as well: only its name is recorded.
    """

    files: ClassVar[tuple[str, ...]] = ("weights",)
    name: str = "custom"
    seed: int = 0
    root: str | Path | None = None
    weights: str | Path | None = None

    def __post_init__(self) -> None:
        """Check every field against its annotation.

        Raises:
            ValueError: a value has the wrong type or is none of the known choices.
        """
        hints = typing.get_type_hints(type(self))
        for field in fields(self):
            value = _as_tuple(getattr(self, field.name))
            object.__setattr__(self, field.name, value)
            if not _fits(value, hints[field.name]):
                raise ValueError(
                    f"{field.name}={value!r} does not fit: expected "
                    f"{_describe(hints[field.name])}"
                )

    @classmethod
    def preset(cls: type[Self], name: str, **overrides: Any) -> Self:
        """Settings by name, with single fields replaced.

        Args:
            name: key of the module's ``PRESETS``.
            overrides: as in :meth:`override`.

        Raises:
            ValueError: the preset or a field is unknown; the message lists the known.
        """
        table = cls._table()
        if name not in table:
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


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Message for a name that is not in a table: the known ones and a near miss."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown {what} {name!r}, known are: {', '.join(known)}{hint}"


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has the annotated type (plain types, unions, tuples, Literal)."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is Ellipsis:
            return all(_fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(repr(choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_describe(option) for option in typing.get_args(hint))
    if hint is type(None):
        return "None"
    return hint.__name__ if isinstance(hint, type) else str(hint)
