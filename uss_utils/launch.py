"""Joining the processes that a launcher has started, before any of them works.

``accelerate launch --num_processes 4 -m uss_utils train ...``, ``torchrun`` and
``notebook_launcher`` start the same program several times and say so in the
environment.
"""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from datetime import timedelta

import torch
from accelerate.state import PartialState

from uss_utils import ranks
from uss_utils.environment import pick_device

# The first process may score objects, or write, for long while the others wait. A
# process that died is noticed by the launcher, not by waiting for it.
PATIENCE = timedelta(hours=12)


def started() -> int:
    """How many processes the launcher has started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def together(device: str = "auto") -> Iterator[None]:
    """Join the other processes for a while; alone, nothing happens.

    Only the first one prints. On GPUs each takes the one of its number on its machine.

    Args:
        device: "auto", "cpu" or "cuda", as for one process.

    Raises:
        ValueError: a single GPU is named for several processes, or there are fewer GPUs
            on this machine than processes.
    """
    if started() == 1 or torch.distributed.is_initialized():
        yield
        return
    place = pick_device(device)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if place.index is not None:
        raise ValueError(
            f"{started()} processes cannot share {device!r}; give 'cuda' or 'auto', "
            "and each process takes a GPU of its own"
        )
    if place.type == "cuda" and local >= torch.cuda.device_count():
        raise ValueError(
            f"process {local} of this machine has no GPU: there are only "
            f"{torch.cuda.device_count()}; launch as many processes, and let each see "
            "all GPUs of its machine"
        )
    PartialState(cpu=place.type == "cpu", timeout=PATIENCE)
    if not torch.distributed.is_initialized():
        raise ValueError(
            "WORLD_SIZE names several processes, but nothing joins them; start with "
            "accelerate launch or torchrun, which also set RANK, LOCAL_RANK, "
            "MASTER_ADDR and MASTER_PORT; Apple's GPUs train alone (--device cpu)"
        )
    try:
        with contextlib.nullcontext() if ranks.is_main() else _quiet():
            yield
            ranks.barrier()
    except BaseException as error:
        _leave_at_once(error)
        raise
    finally:
        torch.distributed.destroy_process_group()
        PartialState._reset_state()


def _leave_at_once(error: BaseException) -> None:
    """End this process, so that the launcher ends the others.

    They may be waiting for it in an exchange; NCCL's group is not left before that is
    over. Other groups are: there the error takes its usual way.
    """
    if torch.distributed.get_backend() == "nccl":
        print(f"error: process {ranks.rank()}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def _quiet() -> contextlib.redirect_stdout:
    return contextlib.redirect_stdout(io.StringIO())
