"""Speed of the scene generator on one core.

Run: ``python tests/benchmarks/bench_scenes.py``
"""

import time

from uss_utils.datasets.scenes import canvas, scene

TARGET = 80  # images per second at 128 x 128


def rate(function, kind: str, size: int, count: int) -> float:
    """Scenes per second of processor time, the textures drawn beforehand."""
    function(0, 0, kind, size)
    start = time.process_time()
    for index in range(count):
        function(index, 0, kind, size)
    return count / (time.process_time() - start)


def main():
    for kind in ("street", "aerial"):
        speed = rate(scene, kind, 128, 300)
        print(f"scenes {kind} 128x128: {speed:.0f} images/s (target {TARGET})")
        for size, count in ((64, 100), (256, 60), (512, 20)):
            speed = rate(scene, kind, size, count)
            print(f"scenes {kind} {size}x{size}: {speed:.0f} images/s (no target)")
        speed = rate(canvas, kind, 128, 100)
        print(f"canvas {kind} 192x192: {speed:.0f} images/s (no target)")


if __name__ == "__main__":
    main()
