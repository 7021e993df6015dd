"""Runs cases, each in a process of its own, one after the other.

So neither memory nor threads leak from one into the next, and one that fails or is
killed costs its own row only.
"""

import contextlib
import importlib
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.cases import Case, measure, row

FOLDER = Path(__file__).parent
LIMIT = 900  # seconds that one case may take


def groups() -> list[str]:
    """Names of the modules ``bench_*.py`` without their beginning."""
    return sorted(p.stem.removeprefix("bench_") for p in FOLDER.glob("bench_*.py"))


def module_of(group: str) -> str:
    return f"{__package__}.bench_{group}"


def cases_of(module: str) -> tuple[Case, ...]:
    """The cases that a module names.

    Raises:
        ValueError: two of them cannot be told apart.
    """
    cases = importlib.import_module(module).CASES
    seen = [(case.name, case.size) for case in cases]
    twice = {name for name in seen if seen.count(name) > 1}
    if twice:
        raise ValueError(f"{module} has two cases {sorted(twice)[0]}")
    return tuple(cases)


def selected(
    modules: dict[str, str], only: Sequence[str] = (), slow: bool = False
) -> list[tuple[str, str, int, Case]]:
    """Cases to run: group, module, position in it, case.

    Args:
        modules: by group.
        only: names of groups, or parts of "group: name"; empty: all.
        slow: with those that take minutes; one that is named is taken anyway.

    Raises:
        ValueError: nothing has such a name.
    """
    found = [
        (group, module, place, case)
        for group, module in modules.items()
        for place, case in enumerate(cases_of(module))
    ]
    for word in only:
        if not any(_named(word, group, case) for group, _, _, case in found):
            raise ValueError(
                f"no benchmark is called {word!r}; groups: {', '.join(modules)}"
            )
    return [f for f in found if _wanted(f[0], f[3], only, slow)]


def _wanted(group: str, case: Case, only: Sequence[str], slow: bool) -> bool:
    words = [word for word in only if _named(word, group, case)]
    if only and not words:
        return False
    return slow or not case.slow or any(word != group for word in words)


def _named(word: str, group: str, case: Case) -> bool:
    return word == group or (": " in word and word in f"{group}: {case.name}")


def run(
    chosen: Sequence[tuple[str, str, int, Case]], limit: float = LIMIT
) -> Iterator[dict[str, Any]]:
    """Measure cases; rows as they come.

    Args:
        chosen: from :func:`selected`.
        limit: seconds after which a case is stopped.
    """
    for group, module, place, case in chosen:
        found = row(group, case)
        try:
            found |= apart(limit, _measure, module, place)
        except Exception as error:
            found["error"] = str(error)
        yield found


def _measure(module: str, place: int) -> dict[str, float | None]:
    return measure(cases_of(module)[place])


def apart(limit: float, function, *args) -> Any:
    """A function's result from a process of its own, which leaves no files behind.

    Args:
        limit: seconds.
        function: importable, like its arguments and its result.
        args: its arguments.

    Raises:
        RuntimeError: the function raised, took too long, or its process was killed.
    """
    context = _context()
    receiver, sender = context.Pipe(duplex=False)
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=_serve, args=(sender, folder, function, args))
        process.start()
        sender.close()
        try:
            if not receiver.poll(limit):
                raise RuntimeError(f"stopped after {limit:g} s")
            good, answer = receiver.recv()
            process.join(10)  # it may have workers of its own to send home
        except EOFError:
            process.join()
            code = process.exitcode
            raise RuntimeError(f"its process ended with exit code {code}") from None
        finally:
            process.kill()
            process.join()
    if not good:
        raise RuntimeError(answer)
    return answer


def _context() -> multiprocessing.context.BaseContext:
    """Processes that begin as if nothing had run yet.

    Where it is safe, they are forked from one that has imported the libraries: some
    seconds less for each case.
    """
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "timm", "uss_utils.methods.stego"])
    return context


def _serve(sender: Any, folder: str, function: Any, args: tuple) -> None:
    tempfile.tempdir = folder
    with Path(os.devnull).open("w") as nothing, contextlib.redirect_stdout(nothing):
        try:
            answer = (True, function(*args))
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
            answer = (False, text.strip().splitlines()[0])
    sender.send(answer)
