"""Speed of both probes at pixel resolution on one thread.

Run: ``python tests/benchmarks/bench_probes.py``
"""

import torch
from timing import cpu_seconds, show

from uss_utils import probes
from uss_utils.environment import generator

SIZE = (320, 320)


def main():
    torch.set_num_threads(1)
    g = generator(0)
    code = torch.randn(2, 70, 40, 40, generator=g)
    label = torch.randint(-1, 27, (2, *SIZE), generator=g)
    cluster = probes.ClusterProbe(70, 27, generator=g)
    linear = probes.LinearProbe(70, 27, generator=g)

    @torch.no_grad()
    def log_probs():
        probes.cluster_log_probs_upsampled(cluster, code, SIZE)
        probes.linear_log_probs_upsampled(linear, code, SIZE)

    @torch.no_grad()
    def predictions():
        probes.cluster_prediction_upsampled(cluster, code, SIZE)
        probes.linear_prediction_upsampled(linear, code, SIZE)

    @torch.no_grad()
    def upsampling_the_code():
        large = probes.upsample(code, SIZE)
        cluster.log_probs(large)
        linear(large).log_softmax(1)

    def training_step():
        loss = probes.linear_probe_loss(linear(code), label, 27) + cluster(code)[0]
        loss.backward()

    setting = "both probes, 2 images 320x320, 27 classes"
    show(f"{setting}, log-probabilities", cpu_seconds(log_probs), 0.06)
    show(f"{setting}, predictions", cpu_seconds(predictions), 0.06)
    show(f"{setting}, code upsampled first", cpu_seconds(upsampling_the_code))
    show(f"{setting}, losses and backward", cpu_seconds(training_step))


if __name__ == "__main__":
    main()
