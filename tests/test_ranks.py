"""What processes exchange: rows in their order, gradients summed."""

import subprocess
import sys

import pytest
import torch

from uss_utils import ranks

WORKER = """
import sys
import torch
from uss_utils import ranks

rank, meeting, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.distributed.init_process_group(
    "gloo", init_method="file://" + meeting, rank=rank, world_size=3)
# The second process has no row.
x = (torch.arange(2.0 * (2 - rank) ** 2).view(-1, 2) + 10 * rank).requires_grad_()
rows = ranks.gather_rows(x)
((rank + 1) * rows.square().sum()).backward()
equal = ranks.gather(torch.tensor([[rank, -rank]]))
nothing = ranks.gather_rows(torch.zeros(0, 4))
torch.save({"rows": rows.detach(), "grad": x.grad, "equal": equal,
            "nothing": nothing, "rank": ranks.rank(), "x": x.detach()}, out)
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    files = [folder / f"{rank}.pt" for rank in range(3)]
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(folder / "meet"), str(file)],
            stderr=subprocess.PIPE,
        )
        for rank, file in enumerate(files)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors.decode()
    return [torch.load(file, weights_only=True) for file in files]


def test_rows_of_all_in_their_order(found):
    whole = torch.cat([each["x"] for each in found])
    assert [len(each["x"]) for each in found] == [4, 1, 0]
    for rank, each in enumerate(found):
        assert each["rank"] == rank
        assert torch.equal(each["rows"], whole)
        assert each["equal"].tolist() == [[0, 0], [1, -1], [2, -2]]
        assert each["nothing"].shape == (0, 4)


def test_gradients_are_those_of_the_sum(found):
    for each in found:
        assert torch.equal(each["grad"], (1 + 2 + 3) * 2 * each["x"])


def test_one_process_keeps_its_own():
    x = torch.randn(3, 2)
    assert ranks.world_size() == 1 and ranks.rank() == 0
    assert ranks.gather(x) is x and ranks.gather_rows(x) is x
