"""How long the baselines take: the street ladder, one evaluation, one picture."""

from tests.benchmarks.__main__ import alone
from tests.benchmarks.cases import Case
from uss_utils.datasets.scenes import scene
from uss_utils.evaluation import evaluate
from uss_utils.methods import kmeans


def ladder():
    cfg = kmeans.Config.preset("scenes")
    return lambda: kmeans.ladder(cfg, seeds=(0, 1, 2))


def trained():
    cfg = kmeans.Config.preset("scenes")
    train_set, val_set = kmeans.data(cfg)
    return kmeans.train(cfg, train_set), val_set


def evaluation():
    model, val_set = trained()
    return lambda: evaluate(model, val_set)


def one_picture():
    model, _ = trained()
    pixels = scene(0, 0, "street", 512).image
    return lambda: model.segment(pixels)


CASES = (
    Case("ladder", "3 seeds", ladder, repeats=1, slow=True),
    Case("evaluation", "150 images 128 x 128", evaluation, repeats=3),
    Case("one picture segmented", "512 x 512", one_picture, repeats=3),
)

if __name__ == "__main__":
    raise SystemExit(alone("ladder"))
