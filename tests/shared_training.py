"""Short trainings of networks whose batches processes share.

``python -m tests.shared_training FILE JOB ...``, each job a case, a folder for its
checkpoint, and after how many steps to stop, separated by commas. The file gets what
:func:`uneven` returns.
"""

import sys
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import torch

from tests.methods import test_hsg_loss, test_maskcontrast_network
from tests.models import boxes
from tests.training_run import stop_at
from uss_utils import fitting, learning, ranks
from uss_utils.launch import together
from uss_utils.methods import hsg, maskcontrast

STEPS = 3
_SMALL = {"stages": 1, "mid": 8, "view_size": 32, "batch_size": 5, "steps": STEPS + 1}
_MASKS = {"mask_backbone": "vit_tiny_random", "mask_map": "none", "refine": False}
_MASKS |= {"dim": 4, "objects": 3, **_SMALL}
_REGIONS = {"dim": 8, "region_side": 64, "fine": 4, "coarse": 2, "lr": 0.02, **_SMALL}
_FEATURES = {"network": "none", "backbone": "vit_tiny_random", "standardise": "centre"}
_PARTS = {"accumulate": 2}  # of 3 and 2 images

# Two processes share a batch of 5 images as 3 and 2.
CASES = {
    "maskcontrast": (maskcontrast, _MASKS),
    "maskcontrast-parts": (maskcontrast, _MASKS | _PARTS),
    # Dropout; and alone, the second process's one image would have no variance.
    "deeplab": (maskcontrast, _MASKS | {"decoder": "deeplab", "batch_size": 3}),
    "hsg": (hsg, _REGIONS),
    "hsg-features": (hsg, _REGIONS | _FEATURES),
    "hsg-parts": (hsg, _REGIONS | _PARTS),
}


def train(name, folder, stop=STEPS):
    """Train a case in double precision, or go on with it; nothing is fitted after.

    In single precision rounding moves pixels to other clusters of HSG's k-means, and
    another number of nodes changes what dropout draws.

    Returns:
        The checkpoint.
    """
    method, settings = CASES[name]
    cfg = method.Config.preset("smoke", **settings)
    material = method.prepare(cfg, boxes())
    path = Path(folder) / f"{name}.safetensors"
    build, seen = method.build, method.seen
    with (
        patch.object(method, "build", lambda *given: build(*given).double()),
        patch.object(method, "seen", lambda *given: _double(seen(*given))),
        patch.object(learning, "finish"),
        patch.object(fitting, "watcher", lambda *_: stop_at(stop)),
        suppress(KeyboardInterrupt),
    ):
        method.train(cfg, material, checkpoint=path, checkpoint_every=1)
    return path


def _double(given):
    """Images in double precision; masks stay."""
    if isinstance(given, list):
        return [_double(part) for part in given]
    return given.double() if given.is_floating_point() else given


def uneven():
    """Figures and gradients of 5 images that processes cannot share evenly.

    Returns:
        Their means over processes, by name.
    """
    found = {}
    for kind in ("two objects", "not all seen", "one share empty", "all empty"):
        for method, values in (("maskcontrast", _objects(kind)), ("hsg", _nodes(kind))):
            found |= {f"{method}, {kind}, {name}": v for name, v in values.items()}
    return {name: ranks.total(x) / ranks.world_size() for name, x in found.items()}


def _objects(kind):
    """One step of MaskContrast, on masks of a kind."""
    own = test_maskcontrast_network.model().double()
    own.synchronise_batch_norm()
    view_q, view_k, *masks = test_maskcontrast_network.batch(3, n=2, images=5)
    if kind == "not all seen":
        masks[1][masks[1] == 2] = 0
    first = {"one share empty": 3, "all empty": 0}.get(kind, 5)
    for mask in masks:
        mask[first:] = 0
    rows = [part[ranks.share(5)] for part in (view_q.double(), view_k.double(), *masks)]
    terms = own(*rows)
    terms["loss"].backward()
    state = {name: x.double() for name, x in own.state_dict().items()}
    return _values(terms, own.query) | state


def _nodes(kind):
    """HSG's terms, on views whose pixels are valid as the kind says."""
    emb, regions, valid, image = test_hsg_loss.batch(5)
    emb = emb.detach().double().requires_grad_()
    valid[{"one share empty": 6, "all empty": 0}.get(kind, 10) :] = False
    if kind == "not all seen":
        valid[2:4] = valid[:, :3] = False
    share = ranks.share(5)
    rows = slice(2 * share.start, 2 * share.stop)
    groups = test_hsg_loss.grouping().double()
    given = (part[rows] for part in (emb, regions, valid, image))
    terms = test_hsg_loss.SMALL(*given, groups)
    terms["total"].backward()
    return _values(terms, groups) | {"embeddings": emb.grad}


def _values(terms, module):
    """Figures, and gradients of a module's weights."""
    grads = {
        f"grad {name}": torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in module.named_parameters()
    }
    return {name: term.detach() for name, term in terms.items()} | grads


def main(file, *jobs):
    """Run the jobs."""
    torch.set_num_threads(1)
    with together("cpu"):
        torch.save(uneven(), f"{file}{ranks.rank()}")
        for job in jobs:
            name, folder, stop = job.split(",")
            train(name, folder, int(stop))


if __name__ == "__main__":
    main(*sys.argv[1:])
