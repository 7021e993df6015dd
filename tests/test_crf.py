"""Dense CRF on one image, on batches over processes, and without its library."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from uss_utils import crf
from uss_utils.crf import CRFParams, CRFPool, dense_crf, dense_crf_batch
from uss_utils.datasets.transforms import normalise, to_uint8
from uss_utils.environment import generator

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    INSTALLED = crf.available()
needs_library = pytest.mark.skipif(not INSTALLED, reason="pydensecrf is not installed")


def two_halves(size=24, noise=0.0, seed=0):
    """Image (3, size, size) with a vertical edge and logits (2, size, size)."""
    label = torch.zeros(size, size, dtype=torch.int64)
    label[:, size // 2 :] = 1
    colour = torch.tensor([[200, 40, 40], [30, 60, 220]], dtype=torch.uint8)
    logits = 2.0 * F.one_hot(label, 2).movedim(-1, 0)
    logits = logits + noise * torch.randn(
        2, size, size, generator=generator(seed)
    )  # fmt: skip
    return normalise(colour[label]), logits, label


def batch(n=5, size=24):
    parts = [two_halves(size, noise=2.0, seed=i) for i in range(n)]
    return torch.stack([p[0] for p in parts]), torch.stack([p[1] for p in parts])


@needs_library
def test_noise_is_cleaned_along_the_edge():
    image, logits, label = two_halves(noise=2.0)
    before = (logits.argmax(0) == label).float().mean()
    posterior = dense_crf(image, logits)
    after = (posterior.argmax(0) == label).float().mean()
    assert before < 0.9 and after > 0.99
    assert posterior.shape == logits.shape and posterior.dtype == torch.float32
    torch.testing.assert_close(posterior.sum(0), torch.ones(24, 24))


@needs_library
def test_without_pairwise_terms_the_softmax_comes_back():
    image, logits, _ = two_halves(noise=1.0)
    alone = CRFParams(gaussian_compat=0, bilateral_compat=0)
    posterior = dense_crf(image, logits, alone)
    torch.testing.assert_close(posterior, logits.softmax(0), atol=1e-4, rtol=0)
    shifted = dense_crf(image, logits.log_softmax(0))
    torch.testing.assert_close(shifted, dense_crf(image, logits))


@needs_library
@pytest.mark.parametrize("change", [
    {"iterations": 1}, {"gaussian_sxy": 5.0}, {"gaussian_compat": 0.5},
    {"bilateral_sxy": 5.0}, {"bilateral_srgb": 80.0}, {"bilateral_compat": 0.5},
])  # fmt: skip
def test_every_parameter_has_an_effect(change):
    image, logits, _ = two_halves(noise=1.0)
    image = image + 0.2 * torch.randn(image.shape, generator=generator(1))
    usual, changed = (
        dense_crf(image, logits),
        dense_crf(image, logits, CRFParams(**change)),
    )
    assert (usual - changed).abs().max() > 1e-3


@needs_library
def test_small_logits_are_resized_bilinearly():
    image, _, _ = two_halves()
    small = torch.randn(3, 6, 4, generator=generator(0))
    large = F.interpolate(small[None], (24, 24), mode="bilinear")[0]
    torch.testing.assert_close(
        dense_crf(image, small), dense_crf(image, large), atol=1e-4, rtol=0
    )


@needs_library
def test_bytes_may_be_given_instead_of_a_normalised_image():
    image, logits, _ = two_halves(noise=1.0)
    assert torch.equal(dense_crf(to_uint8(image), logits), dense_crf(image, logits))


@needs_library
@pytest.mark.parametrize("workers", [1, 2])
def test_batches_equal_single_images_bit_for_bit(workers):
    images, logits = batch()
    singly = torch.stack([dense_crf(i, z) for i, z in zip(images, logits, strict=True)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a silent fall-back would prove nothing
        together = dense_crf_batch(images, logits, workers=workers)
    assert torch.equal(together, singly)


@needs_library
def test_a_pool_serves_many_batches_and_lists_of_other_sizes():
    images, logits = batch(3)
    with CRFPool(2) as pool:
        first = dense_crf_batch(images, logits, pool=pool)
        processes = list(pool._processes)
        sizes = [two_halves(size) for size in (16, 20, 30)]
        listed = dense_crf_batch(
            [s[0] for s in sizes], [s[1] for s in sizes], pool=pool
        )
        assert pool._processes == processes and len(processes) == 2
    assert all(p.poll() is not None for p in processes)
    assert torch.equal(first, dense_crf_batch(images, logits, workers=1))
    assert [q.shape[-1] for q in listed] == [16, 20, 30]
    assert torch.equal(listed[2], dense_crf(*sizes[2][:2]))


@needs_library
@pytest.mark.parametrize(
    ("blow", "reason"),
    [(signal.SIGSTOP, "no result for 1 seconds"), (signal.SIGKILL, "a process ended")],
)
def test_hung_or_killed_processes_do_not_stop_the_work(blow, reason):
    images, logits = batch(size=96)  # larger than what a pipe holds: writing blocks too
    expected = dense_crf_batch(images, logits, workers=1)
    with CRFPool(2, timeout=1) as pool:
        pool._start()
        processes = list(pool._processes)
        for process in processes:
            process.send_signal(blow)
        begin = time.perf_counter()
        with pytest.warns(UserWarning, match=f"failed .{reason}") as caught:
            found = dense_crf_batch(images, logits, pool=pool)
        again = dense_crf_batch(images, logits, pool=pool)
    assert time.perf_counter() - begin < 60
    assert len(caught) == 1
    assert torch.equal(found, expected) and torch.equal(again, expected)
    assert all(p.poll() is not None for p in processes)


@needs_library
def test_processes_that_cannot_start_do_not_stop_the_work(monkeypatch):
    images, logits = batch(3)
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.warns(UserWarning, match="could not be started"):
        found = dense_crf_batch(images, logits, workers=2)
    assert torch.equal(found, dense_crf_batch(images, logits, workers=1))


@needs_library
def test_an_error_of_a_task_is_raised_and_ends_the_processes():
    pool = CRFPool(2)
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    wrong = np.full((2, 5, 5), 0.5, dtype=np.float32)
    jobs = [(image, wrong, {})] * 3
    with pytest.raises(KeyError, match="gaussian_sxy"):
        pool.map("mean_field", jobs)
    assert pool._processes == []
    with pytest.raises(ValueError, match="finite logits"):
        dense_crf_batch(*(t * float("nan") for t in batch(2)), pool=pool)
    assert pool._processes == []


# No ``if __name__ == "__main__"``: pools that import the main script again would run
# this one for ever. The stopped processes must not delay the end of the program either.
SCRIPT = """
import os, signal, sys, torch
print("started", flush=True)
from uss_utils.crf import CRFPool, dense_crf_batch
image, logits = torch.zeros(4, 3, 16, 16), torch.randn(4, 2, 16, 16)
pool = CRFPool(2, timeout=1)
assert torch.equal(
    dense_crf_batch(image, logits, pool=CRFPool(2)),
    dense_crf_batch(image, logits, workers=1))
pool._start()
for process in pool._processes:
    process.send_signal(signal.SIGSTOP)
dense_crf_batch(image, logits, pool=pool)
print(*(p.pid for p in pool._processes), "ended", flush=True)
"""


@needs_library
@pytest.mark.parametrize("how", ["file", "-c"])
def test_works_in_a_script_without_main_guard(how, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    arguments = [str(script)] if how == "file" else ["-c", SCRIPT]
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["started", "ended"]
    assert done.stderr.count("no result for 1 seconds") == 1


ORPHANS = """
import time
from uss_utils.crf import CRFPool
pool = CRFPool(2)
pool._start()
print(*(p.pid for p in pool._processes), flush=True)
time.sleep(600)
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # An orphan that nobody reaps stays in the table as a zombie.
    status = Path(f"/proc/{pid}/stat").read_text()
    return status.rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc")
def test_processes_do_not_outlive_a_killed_parent():
    parent = subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE)
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2 and all(map(alive, pids))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(200):
        if not any(map(alive, pids)):
            return
        time.sleep(0.1)
    pytest.fail(f"still running: {pids}")


def test_worker_loads_neither_torch_nor_the_package():
    code = (
        "import sys, uss_utils._crf_worker\n"
        "tops = ('torch', 'uss_utils')\n"
        "found = [m for m in sys.modules if m.split('.')[0] in tops]\n"
        "assert found == ['uss_utils', 'uss_utils._crf_worker'], found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.fixture
def without_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    crf.available.cache_clear()
    yield
    crf.available.cache_clear()


def test_a_missing_library_is_explained_once(without_library):
    with pytest.warns(UserWarning, match="no CRF rows: .*pip install pydensecrf2") as c:
        assert [crf.available() for _ in range(3)] == [False] * 3
    assert len(c) == 1
    assert c[0].filename == "uss_utils/crf.py"  # no path of a machine in notebooks
    image, logits, _ = two_halves()
    with pytest.raises(ImportError, match="needs pydensecrf; install it with"):
        dense_crf(image, logits)
    with pytest.raises(ImportError, match="needs pydensecrf"):
        dense_crf_batch(image[None], logits[None])


@needs_library
def test_bad_input_is_explained():
    image, logits, _ = two_halves()
    with pytest.raises(
        ValueError, match=r"expected finite logits of shape \(K, h, w\)"
    ):
        dense_crf(image, logits[None])
    with pytest.raises(ValueError, match="with NaN or infinite values"):
        dense_crf(image, logits * float("inf"))
    with pytest.raises(ValueError, match=r"normalised image \(3, H, W\) or RGB bytes"):
        dense_crf(to_uint8(image).movedim(-1, 0), logits)
    with pytest.raises(ValueError, match="normalised image"):
        dense_crf(image[:1], logits)
    with pytest.raises(ValueError, match="2 images but 1 maps of logits"):
        dense_crf_batch([image, image], [logits])


def test_bad_parameters_are_explained():
    with pytest.raises(ValueError, match="iterations=0 has to lie in"):
        CRFParams(iterations=0)
    with pytest.raises(ValueError, match="bilateral_compat=-1 has to be at least 0"):
        CRFParams(bilateral_compat=-1)
    with pytest.raises(ValueError, match="workers=0 and timeout=120.0"):
        CRFPool(0)
    with pytest.raises(ValueError, match="must both be positive"):
        CRFPool(2, timeout=0)
