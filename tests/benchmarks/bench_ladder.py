"""How long the baselines take: the whole street ladder, one evaluation, one picture.

Run: ``python tests/benchmarks/bench_ladder.py`` on an otherwise idle machine.
"""

import os
import time

import torch
from timing import cpu_seconds, show

from uss_utils.datasets.scenes import scene
from uss_utils.evaluation import evaluate
from uss_utils.methods import kmeans


def main():
    torch.set_num_threads(os.cpu_count() or 1)
    print(f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    cfg = kmeans.Config.preset("scenes")
    begun, used = time.perf_counter(), time.process_time()
    kmeans.ladder(cfg, seeds=(0, 1, 2))
    used = time.process_time() - used
    show("street ladder, 3 seeds, wall", time.perf_counter() - begun, 60)
    show("street ladder, 3 seeds, processor", used)
    train_set, val_set = kmeans.data(cfg)
    model = kmeans.train(cfg, train_set)
    show("evaluate 150 images", cpu_seconds(lambda: evaluate(model, val_set), 3))
    pixels = scene(0, 0, "street", 512).image
    show("segment one 512x512 picture", cpu_seconds(lambda: model.segment(pixels), 3))


if __name__ == "__main__":
    main()
