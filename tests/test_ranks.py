"""What processes exchange: rows in their order, gradients summed."""

import pytest
import torch
from torch import nn

from tests.processes import run_together
from uss_utils import ranks

WORKER = """
import sys
import torch
from uss_utils import launch, ranks

with launch.together("cpu"):
    rank = ranks.rank()
    # The last process has no row.
    x = (torch.arange(2.0 * (2 - rank) ** 2).view(-1, 2) + 10 * rank).requires_grad_()
    rows = ranks.gather_rows(x)
    ((rank + 1) * rows.square().sum()).backward()
    equal = ranks.gather(torch.tensor([[rank, -rank]]))
    nothing = ranks.gather_rows(torch.zeros(0, 4))
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(layer.weight, 5.0 + rank)
    ranks.alike(layer)
    torch.save({"rows": rows.detach(), "grad": x.grad, "equal": equal,
                "nothing": nothing, "rank": ranks.rank(), "x": x.detach(),
                "total": ranks.total(x.detach().sum()), "main": ranks.is_main(),
                "share": list(range(7))[ranks.share(7)],
                "few": list(range(2))[ranks.share(2)],
                "told": ranks.from_main({"rank": rank}),
                "all": ranks.everywhere(rank < 3), "some": ranks.everywhere(rank < 2),
                "alike": layer.weight.detach()}, f"{sys.argv[1]}/{rank}.pt")
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    run_together(3, "-c", WORKER, str(folder))
    files = [folder / f"{rank}.pt" for rank in range(3)]
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


def test_shares_make_up_the_whole(found):
    assert [each["share"] for each in found] == [[0, 1, 2], [3, 4], [5, 6]]
    assert [each["few"] for each in found] == [[0], [1], []]
    assert [each["main"] for each in found] == [True, False, False]


def test_what_all_agree_on(found):
    whole = sum(each["x"].sum() for each in found)
    for each in found:
        assert each["total"] == whole
        assert each["told"] == {"rank": 0}
        assert each["all"] and not each["some"]
        assert torch.equal(each["alike"], torch.full((2, 2), 5.0))


def test_one_process_keeps_its_own():
    x = torch.randn(3, 2)
    assert ranks.world_size() == 1 and ranks.rank() == 0
    assert ranks.gather(x) is x and ranks.gather_rows(x) is x
    assert ranks.is_main() and ranks.share(5) == slice(0, 5)
    assert ranks.everywhere(True) and not ranks.everywhere(False)
    assert ranks.from_main(None) is None and ranks.total(x[0, 0]) == x[0, 0]
    layer = nn.Linear(2, 2)
    before = layer.weight.clone()
    ranks.alike(layer)
    assert torch.equal(layer.weight, before)
