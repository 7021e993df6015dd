"""The scene generator; textures are drawn beforehand."""

import itertools

from tests.benchmarks.__main__ import alone
from tests.benchmarks.cases import Case
from uss_utils.datasets.scenes import canvas, scene


def draw(function, kind: str, size: int, count: int):
    """Other scenes in every call."""
    numbers = itertools.count()
    function(next(numbers), 0, kind, size)
    return lambda: [function(next(numbers), 0, kind, size) for _ in range(count)]


def case(name: str, function, kind: str, size: int, count: int, target=None) -> Case:
    return Case(
        *(f"{name}, {kind}", f"{size} x {size}", draw, (function, kind, size, count)),
        unit="images/s",
        items=count,
        repeats=3,
        target=target,
    )


CASES = tuple(
    one
    for kind in ("street", "aerial")
    for one in (
        case("scene", scene, kind, 128, 100, 80),
        *(
            case("scene", scene, kind, size, count)
            for size, count in ((64, 100), (256, 20), (512, 8))
        ),
        case("canvas", canvas, kind, 128, 50),
    )
)

if __name__ == "__main__":
    raise SystemExit(alone("scenes"))
