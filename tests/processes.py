"""Several processes that work together, as a launcher starts them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run_alone(*command):
    """Run ``python *command`` in a fresh process with one thread, to its end.

    For what forks: a process that has computed with torch can hang in a fork.
    """
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def run_together(n, *command, timeout=240, threads=1, **env):
    """Run ``python *command`` n times at once, as the processes of one run.

    A failure of one ends all, with its error's text.

    Args:
        n: number of processes.
        command: arguments of the interpreter, e.g. ``"-c", code`` or ``"-m", module``.
        timeout: seconds for all of them.
        threads: of each.
        env: further environment variables.

    Returns:
        What each of them printed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in map(str, range(n)):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(n)}
        own |= {"LOCAL_WORLD_SIZE": str(n), "OMP_NUM_THREADS": str(threads)}
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        child = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=os.environ | own | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        children.append(child)
    try:
        found = [child.communicate(timeout=timeout) for child in children]
        errors = [errors for _, errors in found]
        assert not any(child.returncode for child in children), "\n".join(errors)
        return [output for output, _ in found]
    finally:
        for child in children:
            child.kill()
