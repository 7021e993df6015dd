"""How many inputs are generated: a few with the other tests, many on demand.

``USS_FUZZ`` is unset (the quick profile: few cases, always the same), ``full`` or a
number of cases per test (the full profile: other cases in every run; a failure prints
the line that repeats it)::

    USS_FUZZ=2000 python -m pytest -m fuzz tests/fuzz

Counts per test are printed at the end. A test that runs its cases in a loop of its own
reports their number with ``record_property("cases", n)``.
"""

import functools
import os
import tempfile
from collections import Counter
from pathlib import Path

import hypothesis
import pytest
from hypothesis import HealthCheck
from hypothesis.configuration import set_hypothesis_home_dir

QUICK, FULL = 40, 1000  # cases per test
_here = Path(__file__).parent
_ran: Counter[str] = Counter()

# Fixtures are made once for all cases of a test: folders are emptied by the tests.
_shared = dict(
    deadline=None,
    database=None,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
)
_asked = os.environ.get("USS_FUZZ", "")
if _asked not in ("", "full", "quick") and not _asked.isdecimal():
    raise pytest.UsageError(
        f"USS_FUZZ={_asked!r} is neither 'full' nor a number of cases per test"
    )
_cases = int(_asked) if _asked.isdecimal() else FULL
hypothesis.settings.register_profile(
    "quick", max_examples=QUICK, derandomize=True, **_shared
)
hypothesis.settings.register_profile(
    "full", max_examples=_cases, print_blob=True, **_shared
)
PROFILE = "quick" if _asked in ("", "quick") else "full"
hypothesis.settings.load_profile(PROFILE)
# Hypothesis would make a folder in the repository.
set_hypothesis_home_dir(Path(tempfile.gettempdir()) / "uss-hypothesis")


def _counted(function):
    """A test's function that notes how often it ran; no case that it assumed away."""

    @functools.wraps(function)
    def run(*args, **kwargs):
        function(*args, **kwargs)
        _ran[_current()] += 1

    run.counted = True
    return run


def _current() -> str:
    return os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" ")[0]


def pytest_collection_modifyitems(items):
    """Count the cases of every test here."""
    for item in items:
        handle = getattr(getattr(item, "obj", None), "hypothesis", None)
        if handle is None or _here not in item.path.parents:
            continue
        if not hasattr(handle.inner_test, "counted"):
            handle.inner_test = _counted(handle.inner_test)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Hand the count to the report, as a property."""
    try:
        return (yield)
    finally:
        if cases := _ran.pop(_current(), 0):
            item.user_properties.append(("cases", cases))


def pytest_terminal_summary(terminalreporter):
    """Print how many cases every test ran."""
    counts = {
        report.nodeid: value
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", None) == "call" and "tests/fuzz/" in report.nodeid
        for name, value in report.user_properties
        if name == "cases"
    }
    if not counts:
        return
    terminalreporter.section(f"fuzz cases, profile {PROFILE}")
    for nodeid, cases in sorted(counts.items()):
        terminalreporter.write_line(f"{cases:8} {nodeid}")
    terminalreporter.write_line(f"{sum(counts.values()):8} in all")
