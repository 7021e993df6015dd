"""Dense CRF: let the edges of the image sharpen a coarse segmentation.

A fully connected CRF (Krahenbuhl & Koltun, NeurIPS 2011) with the parameters that the
papers of this course share. It comes from the optional package ``pydensecrf2``; without
it everything but the CRF rows works. It needs one core for a second or so per image, so
batches are spread over processes.
"""

import os
import pickle
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain, islice
from queue import SimpleQueue
from subprocess import PIPE, Popen
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from uss_utils import _crf_worker
from uss_utils.datasets.processes import cores
from uss_utils.datasets.transforms import to_uint8
from uss_utils.paths import repo_root
from uss_utils.presets import NotNegative, Positive, Range, check_fields
from uss_utils.probes import upsample

TIMEOUT = 120.0  # seconds without any finished image after which a pool counts as hung
INSTALL = (
    "install it with: pip install pydensecrf2==1.1 (it is compiled, so a C++ compiler "
    "is needed)"
)


@dataclass(frozen=True)
class CRFParams:
    """Parameters of the CRF; the defaults are those of all papers of this course.

    Attributes:
        iterations: mean-field iterations.
        gaussian_sxy: range of the smoothness term, pixels.
        gaussian_compat: its weight.
        bilateral_sxy: range of the appearance term, pixels.
        bilateral_srgb: its range in colour, grey levels of 0..255.
        bilateral_compat: its weight.

    Raises:
        ValueError: a range or the number of iterations is not positive, or a weight is
            negative.
    """

    iterations: Annotated[int, Range(1, 10_000)] = 10
    gaussian_sxy: Positive = 1.0
    gaussian_compat: NotNegative = 3.0
    bilateral_sxy: Positive = 67.0
    bilateral_srgb: Positive = 3.0
    bilateral_compat: NotNegative = 4.0

    def __post_init__(self):
        check_fields(self)


DEFAULT = CRFParams()


@lru_cache(maxsize=1)
def available() -> bool:
    """Whether the CRF library can be imported; if not, a warning says so once."""
    try:
        import pydensecrf.densecrf  # noqa: F401
    except (ImportError, ValueError) as error:  # ValueError: built for another numpy
        # Without the caller's file: in a notebook that is a path of this machine.
        warnings.warn_explicit(
            f"no CRF rows: pydensecrf cannot be imported ({error}); {INSTALL}",
            UserWarning,
            filename="uss_utils/crf.py",
            lineno=0,
        )
        return False
    return True


def dense_crf(image: Tensor, logits: Tensor, params: CRFParams = DEFAULT) -> Tensor:
    """Dense CRF of one image (STEGO, evaluation).

    Args:
        image: ImageNet-normalised, shape (3, H, W); or the uint8 RGB bytes themselves,
            shape (H, W, 3).
        logits: scores or log-probabilities, shape (K, h, w); resized bilinearly to the
            image, then softmax.
        params: the CRF's parameters.

    Returns:
        Posterior Q on the CPU, float32, shape (K, H, W), values 0..1.

    Raises:
        ImportError: pydensecrf is missing (ask :func:`available` first).
        ValueError: shapes that do not fit, or logits that are not finite.
    """
    return torch.from_numpy(_crf_worker.mean_field(*_job(image, logits, params)))


def dense_crf_batch(
    images: Tensor | Sequence[Tensor],
    logits: Tensor | Sequence[Tensor],
    *,
    params: CRFParams = DEFAULT,
    workers: int | None = None,
    timeout: float = TIMEOUT,
    pool: "CRFPool | None" = None,
) -> Tensor | list[Tensor]:
    """Dense CRF of several images, spread over processes; same numbers as one by one.

    Args:
        images: as for :func:`dense_crf`, with a leading batch axis, or a list of images
            of different sizes.
        logits: shape (B, K, h, w), or a list.
        params: the CRF's parameters.
        workers: processes; None = one per core, 1 = no other process.
        timeout: see :class:`CRFPool`.
        pool: a running pool to use instead of starting one (then ``workers`` and
            ``timeout`` are the pool's).

    Returns:
        Posteriors on the CPU, float32, shape (B, K, H, W); a list for a list.

    Raises:
        ImportError: pydensecrf is missing.
        ValueError: counts or shapes that do not fit, or logits that are not finite.
    """
    if len(images) != len(logits):
        raise ValueError(f"{len(images)} images but {len(logits)} maps of logits")
    _require_library()
    jobs = (_job(image, z, params) for image, z in zip(images, logits, strict=True))
    if pool is not None:
        found = pool.map("mean_field", jobs)
    else:
        wanted = min(cores() if workers is None else workers, max(1, len(images)))
        with CRFPool(wanted, timeout) as own:
            found = own.map("mean_field", jobs)
    posteriors = [torch.from_numpy(q) for q in found]
    return torch.stack(posteriors) if isinstance(images, Tensor) else posteriors


def sharpen_ids(
    images: Tensor,
    ids: Tensor,
    counts: Sequence[int],
    params: CRFParams = DEFAULT,
    pool: "CRFPool | None" = None,
) -> Tensor:
    """Dense CRF of maps of ids, whose unary is their one-hot behind a log-softmax.

    Args:
        images: RGB bytes, shape (B, H, W, 3).
        ids: uint8, shape (B, h, w), values 0..count; on the CPU.
        counts: number of labels beside 0, image by image.
        params: the CRF's parameters.
        pool: running worker processes; None works in this process.

    Returns:
        uint8, shape (B, H, W), values 0..count.

    Raises:
        ImportError: pydensecrf is missing.
        ValueError: images that are not RGB bytes, or counts that do not fit.
    """
    _require_library()
    if not len(images) == len(ids) == len(counts):
        raise ValueError(
            f"{len(images)} images, {len(ids)} maps of ids and {len(counts)} counts "
            "have to be as many"
        )
    settings = asdict(params)
    jobs = (
        (_pixels(image), small.numpy(), int(count), settings)
        for image, small, count in zip(images, ids, counts, strict=True)
    )
    found = (pool or CRFPool(1)).map("sharpen_ids", jobs)
    return torch.from_numpy(np.stack(found))


def _job(image: Tensor, logits: Tensor, params: CRFParams) -> tuple:
    """Arguments of ``mean_field``: plain arrays, so that workers need no torch."""
    _require_library()
    pixels = _pixels(image)
    if logits.dim() != 3 or not logits.isfinite().all():
        raise ValueError(
            f"expected finite logits of shape (K, h, w), got {tuple(logits.shape)}"
            + (" with NaN or infinite values" if logits.dim() == 3 else "")
        )
    large = upsample(logits.detach()[None].cpu(), pixels.shape[:2])[0]
    return pixels, large.float().softmax(0).numpy(), asdict(params)


def _pixels(image: Tensor) -> np.ndarray:
    """RGB bytes, shape (H, W, 3)."""
    image = torch.as_tensor(image).detach().cpu()
    if image.dtype != torch.uint8 and image.dim() == 3 and len(image) == 3:
        return to_uint8(image.float()).numpy()
    if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[2] != 3:
        raise ValueError(
            "the CRF expects a normalised image (3, H, W) or RGB bytes (H, W, 3) as "
            f"uint8, got {image.dtype} of shape {tuple(image.shape)}"
        )
    return image.numpy()


def _require_library() -> None:
    if not available():
        raise ImportError(f"the dense CRF needs pydensecrf; {INSTALL}")


class CRFPool:
    """Processes that serve many batches and cannot hang the program.

    They are spawned as fresh interpreters (never forked, which deadlocks with threads
    and CUDA), use one thread each, and do not run the caller's main script. Where no
    result arrives for ``timeout`` seconds, or a process dies or cannot be started, all
    are killed, one warning is given, and this process does the rest.

    Args:
        workers: processes; None = one per core, 1 = no other process.
        timeout: seconds to wait for the next finished image.

    Raises:
        ValueError: not a positive number of workers or seconds.
    """

    def __init__(self, workers: int | None = None, timeout: float = TIMEOUT):
        workers = cores() if workers is None else workers
        if workers < 1 or timeout <= 0:
            raise ValueError(
                f"workers={workers} and timeout={timeout} must both be positive"
            )
        self.workers = workers
        self.timeout = timeout
        self._processes: list[Popen] = []
        self._idle: SimpleQueue[Popen] = SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> "CRFPool":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def map(self, task: str, jobs: Iterable[tuple]) -> list:
        """Results of a task for every job, several at a time.

        Args:
            task: a name in ``_crf_worker.TASKS``.
            jobs: arguments of the task; taken one by one, a few ahead of the workers.

        Returns:
            Results in the order of the jobs. An error of a task is raised here.
        """
        numbered = enumerate(jobs)
        results: dict[int, object] = {}
        left = self._in_processes(task, numbered, results) if self.workers > 1 else {}
        for index, job in chain(left.items(), numbered):
            results[index] = _crf_worker.TASKS[task](*job)
        return [results[index] for index in range(len(results))]

    def _in_processes(
        self,
        task: str,
        numbered: Iterator[tuple[int, tuple]],
        results: dict[int, object],
    ) -> dict[int, tuple]:
        """Fill ``results``; returns jobs that were taken when the processes failed."""
        taken: dict[int, tuple] = {}
        futures: dict[Future, int] = {}
        try:
            self._start()
            while True:
                for index, job in islice(numbered, 2 * self.workers - len(futures)):
                    taken[index] = job
                    futures[self._threads.submit(self._ask, task, job)] = index
                if not futures:
                    return {}
                for future in self._finished(futures):
                    index = futures.pop(future)
                    results[index] = future.result()
                    del taken[index]
        except _PoolFailure as failure:
            self.close()
            self.workers = 1
            warnings.warn(
                f"the CRF's worker processes failed ({failure}); this process does "
                "the rest, one image at a time",
                stacklevel=4,
            )
            return taken
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        if self._threads is not None:
            return
        self._threads = ThreadPoolExecutor(self.workers)
        one = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}
        found = (str(repo_root()), os.environ.get("PYTHONPATH"))
        path = {"PYTHONPATH": os.pathsep.join(filter(None, found))}
        try:
            for _ in range(self.workers):
                process = Popen(
                    [sys.executable, "-m", _crf_worker.__name__],
                    stdin=PIPE,
                    stdout=PIPE,
                    env=os.environ | one | path,
                    start_new_session=True,  # Ctrl-C is for this process to handle
                )
                self._processes.append(process)
                self._idle.put(process)
        except OSError as error:
            raise _PoolFailure(f"could not be started: {error}") from error

    def _ask(self, task: str, job: tuple) -> object:
        """Have an idle process do one job; runs in a thread, which only waits."""
        process = self._idle.get()
        try:
            pickle.dump((task, job), process.stdin, protocol=5)
            process.stdin.flush()
            done, answer = pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            raise _PoolFailure("a process ended before its result") from error
        finally:
            self._idle.put(process)
        if not done:
            raise answer
        return answer

    def _finished(self, futures: dict[Future, int]) -> set[Future]:
        finished, _ = wait(futures, self.timeout, FIRST_COMPLETED)
        if not finished:
            raise _PoolFailure(f"no result for {self.timeout:g} seconds")
        return finished

    def close(self) -> None:
        """End the processes; a later :meth:`map` starts new ones."""
        for process in self._processes:
            process.kill()  # its pipes break, which ends the thread that waits for it
        if self._threads is not None:
            self._threads.shutdown(wait=True, cancel_futures=True)
        for process in self._processes:
            for stream in (process.stdin, process.stdout):
                with suppress(OSError):
                    stream.close()
            process.wait()
        self._processes, self._idle, self._threads = [], SimpleQueue(), None


class _PoolFailure(Exception):
    """The processes, not a task, are at fault."""
