"""One process of the CRF pool: ``python -m uss_utils._crf_worker``.

It needs numpy and pydensecrf alone; loading torch would cost every process two seconds.
"""

import os
import pickle
import sys
from contextlib import suppress

import numpy as np


def mean_field(
    image: np.ndarray, probabilities: np.ndarray, params: dict
) -> np.ndarray:
    """Dense CRF of one image by mean-field inference (Krahenbuhl & Koltun, 2011).

    Args:
        image: uint8 RGB, shape (H, W, 3).
        probabilities: float32, shape (K, H, W), summing to one over K.
        params: the fields of ``crf.CRFParams``.

    Returns:
        Posterior Q, float32, shape (K, H, W).
    """
    from pydensecrf.densecrf import DenseCRF2D  # optional: only here

    classes, height, width = probabilities.shape
    crf = DenseCRF2D(width, height, classes)
    unary = -np.log(np.clip(probabilities, 1e-5, 1)).reshape(classes, -1)
    crf.setUnaryEnergy(np.ascontiguousarray(unary, dtype=np.float32))
    crf.addPairwiseGaussian(
        sxy=params["gaussian_sxy"], compat=params["gaussian_compat"]
    )
    # The library approximates the filter, differently for another channel order; the
    # published scores were made with blue first.
    crf.addPairwiseBilateral(
        sxy=params["bilateral_sxy"],
        srgb=params["bilateral_srgb"],
        rgbim=np.ascontiguousarray(image[..., ::-1]),
        compat=params["bilateral_compat"],
    )
    posterior = crf.inference(params["iterations"])
    return np.array(posterior, dtype=np.float32).reshape(classes, height, width)


TASKS = {"mean_field": mean_field}


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
