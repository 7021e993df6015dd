"""One small room per method, each holding only what that method adds.

Every method module has the same parts: a frozen ``Config``, the table ``PRESETS``, the
functions that are the method's idea, and

* ``prepare(cfg) -> Material``: what is trained on, shared by several seeds;
* ``build(cfg, material)``: the model before training;
* ``train(cfg, material) -> Trained``: a :class:`~uss_utils.segmenter.Segmenter` and
  the history of its training.

The zeroth method, k-means, trains no head and therefore needs no ``prepare``.
"""

from importlib import import_module
from types import ModuleType

from uss_utils.presets import unknown

METHODS = ("kmeans", "stego", "hp", "ppap", "primaps", "maskcontrast", "hsg")


def load(name: str) -> ModuleType:
    """A method's module by its name.

    Raises:
        ValueError: the name is unknown; the message lists the known.
    """
    if name not in METHODS:
        raise ValueError(unknown("method", name, METHODS))
    return import_module(f"{__name__}.{name}")
