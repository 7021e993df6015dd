"""The switches of an evaluation, as one value that can be printed and stored."""

from dataclasses import dataclass, field
from typing import Any, Literal

from uss_utils.crf import CRFParams
from uss_utils.datasets.base import SegmentationDataset
from uss_utils.presets import Positive, check_fields


@dataclass(frozen=True)
class EvalProtocol:
    """Every switch on which published evaluations differ.

    Attributes:
        fit_map_on: whose labels name the clusters in the headline: "train" (honest) or
            "eval" (the field's habit). Records hold both where both can be had.
        matching: "hungarian" (one cluster per class) or "majority" (every cluster gets
            its commonest class; for over-clustering).
        flip: average the codes of the image and of its mirror image.
        alpha: inverse temperature of the cluster probabilities; only the CRF sees it,
            the argmax does not depend on it.
        crf: score with the dense CRF too.
        crf_params: its parameters.
    """

    fit_map_on: Literal["train", "eval"] = "train"
    matching: Literal["hungarian", "majority"] = "hungarian"
    flip: bool = True
    alpha: Positive = 2.0
    crf: bool = False
    crf_params: CRFParams = field(default_factory=CRFParams)

    def __post_init__(self) -> None:
        """Check types, choices and ranges.

        Raises:
            ValueError: a switch has no such position, or alpha is not positive.
        """
        check_fields(self)

    def describe(self, dataset: SegmentationDataset | None = None) -> str:
        """One line for under a table; with a data set, its geometry too.

        Args:
            dataset: the evaluated set.
        """
        parts = [
            f"map fitted on {self.fit_map_on} labels by {self.matching}",
            "flip average" if self.flip else "single pass",
            "code upsampled to the label",
            f"CRF on log-softmax with alpha {self.alpha:g}" if self.crf else "no CRF",
            "mean over classes that occur or are predicted",
            "ignore -1",
        ]
        if dataset is not None:
            parts.append(f"images {dataset.transform.describe()}")
        return ", ".join(parts)

    def short(self) -> str:
        """Differences from the default in a few letters, for file names; "" if none."""
        words = [f"{self.fit_map_on}-map"] if self.fit_map_on != "train" else []
        words += [self.matching] if self.matching != "hungarian" else []
        words += [] if self.flip else ["noflip"]
        words += [f"alpha{self.alpha:g}"] if self.alpha != 2 else []
        words += ["crf"] if self.crf else []
        words += ["own-crf"] if self.crf_params != CRFParams() else []
        return "-".join(words)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "EvalProtocol":
        """Inverse of ``dataclasses.asdict``."""
        params = CRFParams(**values.get("crf_params", {}))
        return cls(**values | {"crf_params": params})
