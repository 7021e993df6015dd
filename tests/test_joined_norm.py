"""Batch norms and dropout of processes: those of one with the whole batch."""

import copy
import sys

import pytest
import torch
from torch import nn

from tests.processes import run_together
from uss_utils import joined_norm, ranks
from uss_utils.environment import generator
from uss_utils.joined_norm import JoinedDropout, JoinedNorm, is_joined, join
from uss_utils.launch import together

KINDS = {
    "maps": (nn.BatchNorm2d(4), (8, 4, 3, 5)),
    "rows": (nn.BatchNorm1d(4, momentum=None), (8, 4)),
    "plain": (nn.BatchNorm2d(4, affine=False), (8, 4, 3, 5)),
    "forgetful": (nn.BatchNorm1d(4, track_running_stats=False), (8, 4, 6)),
}


def network(kind) -> tuple[nn.Module, torch.Tensor]:
    """A layer in double precision with weights of its own, and what it takes."""
    layer, shape = KINDS[kind]
    net = nn.Sequential(copy.deepcopy(layer)).double()
    draw = generator(0)
    for weight in net.parameters():
        nn.init.normal_(weight, generator=draw)
    # Far from zero, where a mean of squares would lose its digits.
    return net, torch.randn(shape, generator=draw).double() + 1e4


def outcome(kind) -> dict[str, torch.Tensor]:
    """Two steps of training and one of evaluation on this process's rows."""
    net, x = network(kind)
    names = list(net.state_dict())
    join(net)
    assert is_joined(net) == (ranks.world_size() > 1)
    share = ranks.share(len(x))
    own = x[share].requires_grad_()
    for _ in range(2):
        y = net(own)
    # Every process's loss counts alike; the first rows pull more than others.
    pull = torch.arange(float(len(x)))[share].view(-1, *[1] * (x.ndim - 1))
    (pull * y.sin()).sum().backward()
    found = {f"grad {name}": ranks.total(p.grad) for name, p in net.named_parameters()}
    found |= {"y": ranks.gather_rows(y.detach()), "x": ranks.gather_rows(own.grad)}
    assert list(net.state_dict()) == names
    found |= {name: value.double() for name, value in net.state_dict().items()}
    return found | {"fixed": ranks.gather_rows(net.eval()(own.detach()))}


def dropped() -> torch.Tensor:
    """What dropout keeps of a batch, and a draw that comes after it."""
    net = nn.Sequential(nn.Dropout(0.3))
    join(net)
    x = torch.rand(5, 7, generator=generator(0))
    torch.manual_seed(0)
    rows = ranks.gather_rows(net(x[ranks.share(5)]))
    assert torch.equal(net.eval()(x), x)
    return torch.cat([rows, torch.rand(1, 7)])


def main(file):
    with together("cpu"):
        found = {kind: outcome(kind) for kind in KINDS} | {"dropped": dropped()}
        join(net := nn.Sequential(nn.BatchNorm1d(2)))
        first = net[0]
        join(net)
        assert net[0] is first  # it is done already
        torch.save(found, f"{file}{ranks.rank()}")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What three processes find, who share 8 rows and 5."""
    file = tmp_path_factory.mktemp("norm") / "found"
    run_together(3, "-m", "tests.test_joined_norm", str(file))
    return [torch.load(f"{file}{rank}", weights_only=True) for rank in range(3)]


@pytest.mark.parametrize("kind", KINDS)
def test_processes_normalise_as_one(found, kind):
    expected = outcome(kind)
    for each in found:
        assert each[kind].keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(
                each[kind][name], value, rtol=1e-7, atol=1e-7, msg=name
            )


def test_processes_drop_as_one(found):
    assert all(torch.equal(each["dropped"], dropped()) for each in found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_alone_it_is_torchs_layer(dtype):
    norm = nn.BatchNorm2d(4)
    own = JoinedNorm.of(copy.deepcopy(norm))
    x = torch.randn(3, 4, 5, 5, generator=generator(0)).to(dtype)
    for _ in range(2):
        assert own(x).dtype == dtype
        torch.testing.assert_close(own(x), norm(x.clone()))
        norm(x)
    torch.testing.assert_close(own.state_dict(), norm.state_dict())
    torch.testing.assert_close(own.eval()(x), norm.eval()(x))


def test_weights_and_mode_stay(monkeypatch):
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    norm = nn.BatchNorm2d(4).eval()
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Sequential(norm, nn.Dropout(0.2)))
    names = list(net.state_dict())
    join(net)
    joined, dropout = net[1]
    assert isinstance(joined, JoinedNorm) and not joined.training
    assert isinstance(dropout, JoinedDropout) and dropout.p == 0.2
    assert joined.weight is norm.weight and joined.running_var is norm.running_var
    assert list(net.state_dict()) == names


def test_gpus_keep_torchs_layer(monkeypatch):
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(joined_norm, "_on_gpu", lambda layer: True)
    net = nn.Sequential(nn.Sequential(nn.BatchNorm2d(4)))
    join(net)
    assert isinstance(net[0][0], nn.SyncBatchNorm) and is_joined(net)
    join(net)
    assert isinstance(net[0][0], nn.SyncBatchNorm)


def test_one_process_is_left_alone():
    net = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.1))
    join(net)
    assert type(net[0]) is nn.BatchNorm2d and type(net[1]) is nn.Dropout
    assert not is_joined(net)


def test_a_single_value_has_no_variance():
    with pytest.raises(ValueError, match="on a single value per channel, got .1, 3, 1"):
        JoinedNorm(3)(torch.randn(1, 3, 1, 1))


if __name__ == "__main__":
    main(*sys.argv[1:])
