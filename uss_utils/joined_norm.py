"""Batch norms and dropout that see the batch of all processes.

Where processes share a batch, a layer sees a part of it: a batch norm would take that
part's statistics, dropout would draw for its rows alone. :func:`join` changes both into
layers that do what they would do alone with the whole batch. torch's own SyncBatchNorm
is such a batch norm, but for GPUs only.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from uss_utils import ranks
from uss_utils.rows import as_float


def join(*networks: nn.Module) -> None:
    """Let batch norms and dropout see the batches of all processes, in place.

    Where one process trains, or it is done already, nothing happens. How many train is
    known once :func:`uss_utils.training.fit` has begun. Weights, buffers and their
    names stay.

    Args:
        networks: their layers are changed; a layer that is a network itself is not.
    """
    if ranks.world_size() == 1:
        return
    for network in networks:
        for parent in list(network.modules()):
            for name, layer in list(parent.named_children()):
                joined = _joined(layer)
                if joined is not layer:
                    setattr(parent, name, joined)


def is_joined(network: nn.Module) -> bool:
    """Whether a batch norm of the network sees all processes."""
    kinds = (JoinedNorm, nn.SyncBatchNorm)
    return any(isinstance(layer, kinds) for layer in network.modules())


def _joined(layer: nn.Module) -> nn.Module:
    if type(layer) is nn.Dropout:
        return JoinedDropout(layer.p).train(layer.training)
    if not isinstance(layer, _BatchNorm) or is_joined(layer):
        return layer
    if _on_gpu(layer):
        return nn.SyncBatchNorm.convert_sync_batchnorm(layer)
    return JoinedNorm.of(layer)


def _on_gpu(layer: nn.Module) -> bool:
    return any(x.is_cuda for x in layer.state_dict().values())


class JoinedNorm(_BatchNorm):
    """A batch norm over the rows of all processes, however many each has.

    Running statistics and evaluation are those of torch's layers. The gradient is that
    of the sum of all processes' losses: :func:`uss_utils.ranks.gather_rows`.
    """

    @classmethod
    def of(cls, norm: _BatchNorm) -> "JoinedNorm":
        """The same layer, with the same weights and buffers."""
        shape = (norm.num_features, norm.eps, norm.momentum)
        new = cls(*shape, norm.affine, norm.track_running_stats)
        for name in (*norm._parameters, *norm._buffers):
            setattr(new, name, getattr(norm, name))
        return new.train(norm.training)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every channel: (B, C, ...) to the same shape and type.

        Raises:
            ValueError: training on a single value per channel, over all processes.
        """
        if not self.training and self.running_mean is not None:
            fixed = (self.running_mean, self.running_var, self.weight, self.bias)
            return F.batch_norm(x, *fixed, eps=self.eps)
        with torch.autocast(x.device.type, enabled=False):
            rows = as_float(x)
            count, mean, variance = statistics(rows.detach())
            if self.training and self.track_running_stats:
                self._follow(count, mean, variance)
            scale = (variance + self.eps).rsqrt()
            rows = _Standardise.apply(rows, mean, scale, count)
            if self.affine:
                rows = torch.addcmul(_wide(self.bias, x), rows, _wide(self.weight, x))
        return rows.to(x.dtype)

    @torch.no_grad()
    def _follow(self, count: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics; their variance is the unbiased one."""
        self.num_batches_tracked.add_(1)
        share = self.momentum
        if share is None:
            share = 1 / float(self.num_batches_tracked)
        unbiased = variance * (count / (count - 1))
        for running, new in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.mul_(1 - share).add_(new, alpha=share)


class JoinedDropout(nn.Dropout):
    """Dropout that draws for the rows of all processes, and keeps its own.

    So the processes' generators stay alike.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Drop entries of (B, ...), as one process would of the whole batch."""
        if not self.training:
            return x
        counts = ranks.counts(len(x))
        whole = F.dropout(x.new_ones(sum(counts), *x.shape[1:]), self.p)
        return x * whole.split(counts)[ranks.rank()]


def statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a batch norm needs to know of the rows of all processes.

    Args:
        x: shape (B, C, ...).

    Returns:
        Values per channel n (a scalar), their mean and their biased variance (C,).

    Raises:
        ValueError: there is a single value per channel.
    """
    # The number travels with the sums: each exchange costs more than what it carries.
    own = torch.cat([_sums(x), x.new_tensor([x.numel() // x.shape[1]])])
    found = ranks.total(own)
    count = found[-1]
    if count == 1:
        raise ValueError(
            "a batch norm cannot be trained on a single value per channel, got "
            f"{tuple(x.shape)} in all processes together; use a larger batch"
        )
    mean = found[:-1] / count
    # In two passes: a mean of squares less a squared mean would lose its digits.
    variance = ranks.total(_sums((x - _wide(mean, x)).square())) / count
    return count, mean, variance


def _sums(x: Tensor) -> Tensor:
    """Sum of every channel, (C,)."""
    return x.sum([0, *range(2, x.ndim)])


def _wide(values: Tensor, x: Tensor) -> Tensor:
    """One value per channel, beside x (B, C, ...)."""
    return values.view(-1, *[1] * (x.ndim - 2))


class _Standardise(torch.autograd.Function):
    """z = (x - mean) scale, where mean and scale depend on the x of all processes.

    With the upstream gradient g and means over all n values of a channel, the
    derivative by x is scale (g - mean(g) - z mean(g z)).
    """

    @staticmethod
    def forward(ctx, x: Tensor, mean: Tensor, scale: Tensor, count: Tensor) -> Tensor:
        z = (x - _wide(mean, x)) * _wide(scale, x)
        ctx.save_for_backward(z, scale)
        ctx.count = count
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        z, scale = ctx.saved_tensors
        own = torch.stack([_sums(upstream), _sums(upstream * z)])
        shift, tilt = (_wide(m, z) for m in ranks.total(own) / ctx.count)
        return (upstream - shift - z * tilt) * _wide(scale, z), None, None, None
