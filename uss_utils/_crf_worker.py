"""One process of the CRF pool: ``python -m uss_utils._crf_worker``.

It needs numpy and pydensecrf alone; loading torch would cost every process two seconds.
"""

import os
import pickle
import sys
from contextlib import suppress

import numpy as np


def mean_field(
    image: np.ndarray,
    probabilities: np.ndarray,
    params: dict,
    last_holds: int = 1,
) -> np.ndarray:
    """Dense CRF of one image by mean-field inference (Krahenbuhl & Koltun, 2011).

    Args:
        image: uint8 RGB, shape (H, W, 3).
        probabilities: float32, shape (K, H, W), summing to one over K.
        params: the fields of ``crf.CRFParams``.
        last_holds: how many labels with the same probabilities the last one stands for.
            They stay the same in every step, so one map of their sum is enough; of a
            like neighbour each of them sees only its own share.

    Returns:
        Posterior Q, float32, shape (K, H, W).
    """
    from pydensecrf.densecrf import DenseCRF2D  # optional: only here

    classes, height, width = probabilities.shape
    crf = DenseCRF2D(width, height, classes)
    unary = -np.log(np.clip(probabilities, 1e-5, 1)).reshape(classes, -1)
    crf.setUnaryEnergy(np.ascontiguousarray(unary, dtype=np.float32))

    def compat(weight: float) -> float | np.ndarray:
        if last_holds == 1:
            return weight
        diagonal = np.full(classes, -weight, dtype=np.float32)
        diagonal[-1] /= last_holds
        return diagonal

    crf.addPairwiseGaussian(
        sxy=params["gaussian_sxy"], compat=compat(params["gaussian_compat"])
    )
    # The library approximates the filter, differently for another channel order; the
    # published scores were made with blue first.
    crf.addPairwiseBilateral(
        sxy=params["bilateral_sxy"],
        srgb=params["bilateral_srgb"],
        rgbim=np.ascontiguousarray(image[..., ::-1]),
        compat=compat(params["bilateral_compat"]),
    )
    posterior = crf.inference(params["iterations"])
    return np.array(posterior, dtype=np.float32).reshape(classes, height, width)


def sharpen_ids(
    image: np.ndarray, ids: np.ndarray, count: int, params: dict
) -> np.ndarray:
    """Label map along the image's edges, from a small map of ids.

    The unary is the one-hot of the ids after a log-softmax, which is flat: a label has
    probability e / (e + count), every other one 1 / (e + count). Labels that do not
    occur all behave alike: together they cost as much as one.

    Args:
        image: uint8 RGB, shape (H, W, 3).
        ids: uint8, shape (h, w), values 0..count.
        count: number of labels beside 0.
        params: the fields of ``crf.CRFParams``.

    Returns:
        uint8, shape (H, W), values 0..count.
    """
    height, width = image.shape[:2]
    found = np.unique(ids)
    absent = count + 1 - len(found)
    solid = (ids == found[:, None, None]).astype(np.float32)
    rows, columns = (
        interpolation(source, target)
        for source, target in zip(ids.shape, (height, width), strict=True)
    )
    large = np.exp(rows @ solid @ columns.T)
    if absent:
        large = np.concatenate([large, np.full((1, height, width), absent, "f4")])
    large /= large.sum(0)
    posterior = mean_field(image, large, params, max(absent, 1))
    return found[posterior[: len(found)].argmax(0)].astype(np.uint8)


def interpolation(source: int, target: int) -> np.ndarray:
    """Weights of linear interpolation with half-pixel centres, (target, source)."""
    place = (np.arange(target) + 0.5) * (source / target) - 0.5
    place = place.clip(0, source - 1)
    low = np.minimum(place.astype(int), max(source - 2, 0))
    share = (place - low).astype(np.float32)
    weights = np.zeros((target, source), np.float32)
    own = np.arange(target)
    weights[own, low] = 1 - share
    weights[own, np.minimum(low + 1, source - 1)] += share
    return weights


TASKS = {"mean_field": mean_field, "sharpen_ids": sharpen_ids}


def serve() -> None:
    """Answer (task, arguments) read from stdin, until the parent closes it or dies."""
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints must not get between the answers
    while True:
        try:
            task, arguments = pickle.load(requests)
        except EOFError:
            return
        try:
            answer = (True, TASKS[task](*arguments))
        except Exception as error:  # raised again in the parent
            answer = (False, error)
        pickle.dump(answer, answers, protocol=5)
        answers.flush()


if __name__ == "__main__":
    with suppress(BrokenPipeError, KeyboardInterrupt):
        serve()
