"""A trained model as one object: from any image to a label map, and to a file.

Frozen backbone -> head -> cluster probe (no labels needed) and, where there is one,
linear probe (trained with labels, a measuring instrument). The backbone's weights are
not stored with the model, only their name and fingerprint.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from uss_utils import checkpoint_import, crf, model_file
from uss_utils.datasets.labels import voc_palette
from uss_utils.datasets.transforms import Transform, normalise
from uss_utils.environment import pick_device
from uss_utils.frozen import Frozen
from uss_utils.pictures import (
    MAX_SIDE,
    Picture,
    list_pictures,
    read_picture,
    working_size,
)
from uss_utils.probes import (
    ClusterProbe,
    LinearProbe,
    cluster_log_probs_upsampled,
    cluster_prediction_upsampled,
    linear_log_probs_upsampled,
    linear_prediction_upsampled,
    upsample,
)
from uss_utils.protocol import EvalProtocol

Which = Literal["cluster", "linear"]


class Segmenter:
    """A trained segmentation model.

    Head and probes are copied: training them further does not change the model, and the
    model does not put them into eval mode.

    Args:
        backbone: see :func:`uss_utils.backbones.load`.
        head: map from feat (B, C, h, w) to code (B, D, h, w), one of
            :data:`uss_utils.heads.HEADS`.
        cluster_probe: scores of the K + E clusters.
        linear_probe: scores of the K classes, if one was trained.
        classes: class names; empty where no labels are known.
        palette: colours of the classes, uint8 (K, 3).
        cluster_to_class: class of every cluster, -1 = none, (K + E,); None: unknown.
        transform: geometry of the training images (segment() does not crop).
        protocol: how :func:`uss_utils.evaluation.evaluate` scores it by default.
        method: the method's module.
        preset: the preset it was trained with.
        meta: JSON-able notes. Evaluation reads ``name`` (of this variant in tables),
            ``order`` (in tables), ``overrides``, ``seed``, ``steps``, ``map`` (where
            ``cluster_to_class`` came from) and ``training_seconds``; :meth:`load` reads
            ``backbone_seed``.

    Raises:
        ValueError: parts that do not fit together.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        cluster_probe: ClusterProbe,
        linear_probe: LinearProbe | None = None,
        *,
        classes: Sequence[str],
        palette: np.ndarray,
        cluster_to_class: Tensor | Sequence[int] | None = None,
        transform: Transform | None = None,
        protocol: EvalProtocol | None = None,
        method: str = "custom",
        preset: str = "custom",
        meta: dict[str, Any] | None = None,
    ):
        self.backbone = backbone
        self.head = _frozen_copy(head)
        self.cluster_probe = _frozen_copy(cluster_probe)
        self.linear_probe = None if linear_probe is None else _frozen_copy(linear_probe)
        self.classes = tuple(classes)
        self.palette = np.asarray(palette, dtype=np.uint8).reshape(-1, 3)
        self.cluster_to_class = cluster_to_class
        self.transform = transform or Transform()
        self.protocol = protocol or EvalProtocol()
        self.method, self.preset = method, preset
        self.meta = dict(meta or {})
        self._check()

    def _check(self) -> None:
        if len(self.palette) != len(self.classes):
            raise ValueError(
                f"{len(self.classes)} classes need as many colours, got "
                f"{len(self.palette)}"
            )
        if self.linear_probe is not None:
            outputs = len(self.linear_probe.weight)
            if outputs != len(self.classes):
                raise ValueError(
                    f"the linear probe has {outputs} outputs for "
                    f"{len(self.classes)} classes; train it on this class list"
                )
        if self.cluster_to_class is not None:
            table = torch.as_tensor(self.cluster_to_class, dtype=torch.int64).cpu()
            inside = (-1 <= table) & (table < len(self.classes))
            if table.shape != (self.n_clusters,) or not inside.all():
                raise ValueError(
                    f"cluster_to_class must name a class 0..{len(self.classes) - 1} "
                    f"(or -1) for each of {self.n_clusters} clusters, got "
                    f"{table.tolist()}"
                )
            self.cluster_to_class = table

    @property
    def n_clusters(self) -> int:
        """Number of clusters."""
        return len(self.cluster_probe.clusters)

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.cluster_probe.clusters.device

    def to(self, device: str | torch.device) -> "Segmenter":
        """Move all parts; returns the same object."""
        for part in (self.backbone, *self.parts().values()):
            part.to(pick_device(str(device)))
        return self

    def parts(self) -> dict[str, nn.Module]:
        """The trained parts by name: head, cluster probe and, if any, linear probe."""
        parts = {"head": self.head, "cluster_probe": self.cluster_probe}
        if self.linear_probe is not None:
            parts["linear_probe"] = self.linear_probe
        return parts

    # ---------------------------------------------------------------- tensors in

    @torch.no_grad()
    def code(self, images: Tensor, flip: bool = False) -> Tensor:
        """Code of every patch.

        Args:
            images: normalised, shape (B, 3, H, W), on the model's device.
            flip: average with the mirrored code of the mirrored images (STEGO's
                evaluation).

        Returns:
            shape (B, D, h, w).
        """
        mirrored = self.backbone.features(images.flip(-1)) if flip else None
        return self.code_of(self.backbone.features(images), mirrored)

    @torch.no_grad()
    def code_of(self, feat: Tensor, mirrored: Tensor | None = None) -> Tensor:
        """Code of given features.

        Args:
            feat: features of the images, shape (B, C, h, w).
            mirrored: features of the mirrored images (not mirrored back), same shape;
                None: no flip average.

        Returns:
            shape (B, D, h, w).
        """
        code = self.head(feat)
        if mirrored is None:
            return code
        return (code + self.head(mirrored).flip(-1)) / 2

    @torch.no_grad()
    def log_probs(
        self,
        images: Tensor,
        size: tuple[int, int] | None = None,
        alpha: float = 2.0,
        flip: bool = True,
        which: Which = "cluster",
    ) -> Tensor:
        """Log-probabilities per pixel (STEGO's final evaluation before the CRF).

        Args:
            images: normalised, shape (B, 3, H, W), on the model's device.
            size: (H, W) of the result; None: that of the images.
            alpha: inverse temperature of the clusters; the linear probe has none.
            flip: see :meth:`code`.
            which: "cluster" (K + E channels) or "linear" (K channels).

        Returns:
            shape (B, K + E or K, H, W).

        Raises:
            ValueError: "linear" without a linear probe.
        """
        size = tuple(images.shape[-2:]) if size is None else size
        return self.log_probs_of(self.code(images, flip), size, alpha, which)

    @torch.no_grad()
    def log_probs_of(
        self,
        code: Tensor,
        size: tuple[int, int],
        alpha: float = 2.0,
        which: Which = "cluster",
    ) -> Tensor:
        """:meth:`log_probs` of a given code, shape (B, D, h, w)."""
        if self._chosen(which) is self.cluster_probe:
            return cluster_log_probs_upsampled(self.cluster_probe, code, size, alpha)
        return linear_log_probs_upsampled(self.linear_probe, code, size)

    @torch.no_grad()
    def predict_of(
        self, code: Tensor, size: tuple[int, int], which: Which = "cluster"
    ) -> Tensor:
        """Argmax of :meth:`log_probs_of`, without computing probabilities.

        Returns:
            Clusters (or classes, for "linear"), int64, shape (B, H, W).
        """
        if self._chosen(which) is self.cluster_probe:
            return cluster_prediction_upsampled(self.cluster_probe, code, size)
        return linear_prediction_upsampled(self.linear_probe, code, size)

    def _chosen(self, which: str) -> nn.Module:
        if which not in ("cluster", "linear"):
            raise ValueError(f"unknown probe {which!r}; known: cluster, linear")
        if which == "linear" and self.linear_probe is None:
            raise ValueError(
                "this model has no linear probe: it was trained without labels or "
                "without probe steps; use which='cluster'"
            )
        return self.cluster_probe if which == "cluster" else self.linear_probe

    # --------------------------------------------------------------- pictures in

    def segment(
        self,
        image: Picture | Sequence[Picture],
        crf: bool = False,
        *,
        which: Which = "cluster",
        max_side: int = MAX_SIDE,
        progress: bool = False,
    ) -> Tensor | list[Tensor] | dict[str, Tensor]:
        """Label map of a picture, of several, or of all pictures of a folder.

        The whole picture is used: it is shrunk until its longer side is at most
        ``max_side`` (never enlarged), resized to the nearest multiple of the patch,
        and the scores are brought back to the picture's own size before the argmax.

        Args:
            image: file, folder, PIL image, or uint8 array (H, W), (H, W, 1|3|4); or a
                list of them. Camera orientation is applied, transparency laid on white.
            crf: sharpen with the dense CRF (at the shrunken size).
            which: "cluster", or "linear" where a linear probe was trained.
            max_side: larger pictures are shrunk; bounds memory and time.
            progress: show a bar for lists and folders.

        Returns:
            int64 (H, W) at the picture's own (upright) size: class ids if
            ``cluster_to_class`` is known (-1: a cluster without class), else cluster
            ids; :meth:`legend` names them. A list for a list; for a folder a dict from
            file name to label map.

        Raises:
            FileNotFoundError: no such file, or no picture in the folder.
            OSError: a file is no picture or is cut off.
            ValueError: an array of another kind; "linear" without a linear probe.
            ImportError: ``crf`` where pydensecrf is missing.
        """
        self._chosen(which)
        options = {"crf": crf, "which": which, "max_side": max_side}
        if isinstance(image, str | Path) and Path(image).is_dir():
            paths = list_pictures(Path(image))
            bar = tqdm(paths, desc="segment", unit="img", disable=not progress)
            return {path.name: self.segment(path, **options) for path in bar}
        if isinstance(image, list | tuple):
            bar = tqdm(image, desc="segment", unit="img", disable=not progress)
            return [self.segment(item, **options) for item in bar]
        pixels = read_picture(image)
        ids = self._segment_pixels(pixels, crf, which, max_side)
        if which == "cluster" and self.cluster_to_class is not None:
            ids = self.cluster_to_class[ids]
        return ids

    def _segment_pixels(
        self, pixels: np.ndarray, use_crf: bool, which: Which, max_side: int
    ) -> Tensor:
        size = pixels.shape[:2]
        work = working_size(size, self.backbone.patch, max_side)
        resized = np.array(Transform("resize", work).apply_image(pixels))
        images = normalise(resized)[None].to(self.device)
        code = self.code(images, self.protocol.flip)
        if use_crf:
            logits = self.log_probs_of(code, work, self.protocol.alpha, which)
            scores = crf.dense_crf(
                images[0].cpu(), logits[0].cpu(), self.protocol.crf_params
            )
            return _argmax_at(scores[None], size)
        # The linear part of the scores has the same argmax as the probabilities.
        probe = self._chosen(which)
        linear = probe.linear_scores(code) if which == "cluster" else probe(code)
        return _argmax_at(linear, size).cpu()

    def legend(self) -> tuple[tuple[str, ...], np.ndarray]:
        """Names and colours, uint8 (n, 3), of the ids :meth:`segment` returns."""
        if self.cluster_to_class is not None:
            return self.classes, self.palette
        names = tuple(f"cluster {k}" for k in range(self.n_clusters))
        return names, voc_palette(self.n_clusters + 1)[1:]

    # ------------------------------------------------------------------- on disk

    def save(self, path: str | Path) -> Path:
        """Write the model to one safetensors file, and a readable JSON beside it.

        Args:
            path: file to create or replace; the suffix ``.safetensors`` is added where
                it is missing.

        Returns:
            The file.

        Raises:
            OSError: the folder is read-only or the disk is full.
        """
        return model_file.write(self, path)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        *,
        weights: str | Path | None = None,
    ) -> "Segmenter":
        """Read a model that :meth:`save` wrote.

        Args:
            path: the safetensors file.
            device: where to put it; "auto" picks.
            weights: the backbone's weight file, where it was trained on your own.

        Raises:
            FileNotFoundError: no such file, or the backbone's weights are absent.
            ValueError: the file is cut off, damaged, of another kind, or was trained on
                a backbone with other weights.
        """
        return model_file.read(cls, path, device, weights)


def import_checkpoint(
    path: str | Path,
    method: str,
    *,
    backbone: str | Frozen | None = None,
    dataset: str | None = None,
    device: str | torch.device = "cpu",
) -> Segmenter:
    """A model from a checkpoint that a method's authors released.

    Head and probes come from the file. The backbone does not, even where the file holds
    its weights: those only serve to check that it is the right one. Clusters have no
    classes yet; :func:`uss_utils.evaluation.fit_map` names them.

    Args:
        path: the authors' file; see :mod:`uss_utils.checkpoint_import`.
        method: "stego" or "hp".
        backbone: the DINO below the head: a name, or a loaded one, which is taken as it
            is; None: the name that fits the weights in the file.
        dataset: class names and colours, "cocostuff27", "cityscapes27" or "potsdam3";
            None numbers the classes.
        device: where to put it; "auto" picks.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no checkpoint, one that is damaged, of another method or network,
            with tensors missing or of other shapes, or one that holds objects which
            could run code; another number of classes; a backbone that does not fit.
        ConnectionError: the backbone's weights are neither here nor within reach.
    """
    place = pick_device(str(device))
    made = checkpoint_import.fields(path, method, backbone, dataset)
    return Segmenter(**made).to(place)


def _frozen_copy(part: nn.Module) -> nn.Module:
    return copy.deepcopy(part).eval().requires_grad_(False)


def _argmax_at(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Argmax of upsampled scores, class by class: memory of two maps instead of K.

    Args:
        scores: shape (1, K, h, w).
        size: (H, W).

    Returns:
        int64, shape (H, W).
    """
    best = upsample(scores[:, :1], size)[0, 0]
    ids = torch.zeros(best.shape, dtype=torch.int64, device=scores.device)
    for k in range(1, scores.shape[1]):
        other = upsample(scores[:, k : k + 1], size)[0, 0]
        ids.masked_fill_(other > best, k)
        best = torch.maximum(best, other)
    return ids
