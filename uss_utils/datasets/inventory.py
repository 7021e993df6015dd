"""What of a data set is there, what is missing, and the step that gets it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from uss_utils import paths
from uss_utils.datasets import camvid, folder

# A broken folder can have thousands of problems; these many are read.
SHOWN = 5


@dataclass(frozen=True)
class Count:
    """Files of one kind: how many are there and how many should be.

    Attributes:
        what: e.g. "train images".
        found: number of files.
        expected: published number, or None where any number is right.
    """

    what: str
    found: int
    expected: int | None = None

    @property
    def complete(self) -> bool:
        """All there; at least one where no number is prescribed."""
        return self.found == self.expected if self.expected else self.found > 0

    def __str__(self) -> str:
        mark = "[OK]  " if self.complete else "[MISS]"
        of = f" of {self.expected}" if self.expected else ""
        return f"{mark} {self.what}: {self.found}{of}"


@dataclass(frozen=True)
class Report:
    """Result of looking at one data set; ``print`` it.

    Attributes:
        name: data set.
        place: folder that was looked at, or how the set comes about.
        counts: what was counted.
        problems: sentences about files that would fail when read.
        step: what to do about anything missing; empty if nothing is.
    """

    name: str
    place: str
    counts: tuple[Count, ...]
    problems: tuple[str, ...] = ()
    step: str = ""

    @property
    def complete(self) -> bool:
        """Nothing is missing and nothing is wrong."""
        return not self.problems and all(count.complete for count in self.counts)

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.place}", *map(str, self.counts)]
        lines += [f"[FAIL] {text}" for text in self.problems[:SHOWN]]
        if len(self.problems) > SHOWN:
            lines.append(f"[FAIL] ... and {len(self.problems) - SHOWN} more")
        if not self.complete and self.step:
            lines.append(f"next step: {self.step}")
        return "\n".join(lines)


Checker = Callable[[str | Path | None], Report]


def check_camvid(root: str | Path | None = None) -> Report:
    """Count frames and labels of the three splits of CamVid."""
    try:
        place = camvid.find_root(root)
    except FileNotFoundError:
        place = Path(root).expanduser() if root else paths.data_dir() / "camvid"
    counts = tuple(
        Count(f"{split} {kind}", found, camvid.SPLITS[split])
        for split, pair in camvid.count(place).items()
        for kind, found in zip(("images", "labels"), pair, strict=True)
    )
    step = (
        f"`{camvid.FETCH}` (about 180 MB), or name the folder that holds train/ and "
        "trainannot/ with --data-root. A split that is complete can be used already"
    )
    return Report("camvid", str(place), counts, step=step)


def check_folder(root: str | Path | None = None) -> Report:
    """Count images and labels of an image folder and look at every file's header."""
    place = Path(root).expanduser() if root else paths.data_dir() / "folder"
    step = (
        "mend or remove the files named above; labels are 8-bit PNG of the same size "
        "and name as their image"
    )
    try:
        found, wrong = folder.problems(place)
    except FileNotFoundError as error:
        return Report("folder", str(place), (Count("images", 0),), (str(error),))
    counts = []
    for split, (images, labels) in found.items():
        counts.append(Count(f"{split} images", images))
        if labels:
            counts.append(Count(f"{split} labels", labels, images))
    return Report("folder", str(place), tuple(counts), tuple(wrong), step)


def check_generated(name: str) -> Checker:
    """Checker of a generated set, which is never missing."""

    def check(root: str | Path | None = None) -> Report:
        return Report(name, "generated on the fly, nothing to download", ())

    return check
