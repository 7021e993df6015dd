"""What fuzz tests share."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import settings


def fewer(times: int) -> settings:
    """Settings of a test whose cases are slow: a fraction of the profile's number."""
    profile = settings()
    return settings(profile, max_examples=max(5, profile.max_examples // times))


@contextmanager
def documented(*kinds: type[Exception], path: Path | None = None) -> Iterator[None]:
    """What is inside works, or raises one of these errors, in one clear line.

    Args:
        kinds: of errors; others are let through, and fail the test.
        path: the file whose name the message has to tell.
    """
    try:
        yield
    except kinds as error:
        text = str(error)
        assert text and "\n" not in text and len(text) < 3000, repr(text)
        if path is not None:
            assert path.name in text, f"{text!r} does not name {path.name}"
