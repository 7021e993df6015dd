"""Both probes at pixel resolution."""

import torch

from tests.benchmarks.__main__ import alone
from tests.benchmarks.cases import Case, Released
from uss_utils import probes
from uss_utils.environment import generator

SIZE = (320, 320)


def work(kind: str):
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
    def upsampling_first():
        large = probes.upsample(code, SIZE)
        cluster.log_probs(large)
        linear(large).log_softmax(1)

    def training_step():
        loss = probes.linear_probe_loss(linear(code), label, 27) + cluster(code)[0]
        loss.backward()

    return {
        "log-probabilities": log_probs,
        "predictions": predictions,
        "code upsampled first": upsampling_first,
        "losses and backward": training_step,
    }[kind]


AIM = {"target": 0.06, "released": Released("stego, section 10", 0.098)}
CASES = tuple(
    Case(f"both, {kind}", "2 images 320 x 320, 27 classes", work, (kind,), **more)
    for kind, more in (
        ("log-probabilities", AIM),
        ("predictions", AIM),
        ("code upsampled first", {}),
        ("losses and backward", {}),
    )
)

if __name__ == "__main__":
    raise SystemExit(alone("probes"))
