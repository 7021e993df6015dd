"""Self-supervised pretraining of the tiny ViT on unlabelled images.

Two stages, each on pairs of augmented crops ("views") of the same image:

1. Dense VICReg. The codes of two views at the same scene point must agree, while the
   codes of a batch keep their variance and stay uncorrelated: the three terms of
   VICReg (Bardes et al., ICLR 2022, eq. 1-6), applied per patch instead of per image.
2. Dense self-distillation. A student names each patch with one of a few prototypes;
   the names come from a slowly moving copy of itself, the teacher, that sees the other
   view. DINO's loss (Caron et al., ICCV 2021, eq. 2-3) per patch, with the teacher's
   names balanced by the Sinkhorn-Knopp iteration of SwAV (Caron et al., NeurIPS 2020,
   eq. 3) instead of centring. It is given the weights of stage 1: started from random
   ones, such a distillation did not get going within minutes.

No label enters either stage.
"""

import copy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from timm.models import VisionTransformer
from torch import Tensor, nn

from uss_utils.backbones import tiny_vit
from uss_utils.environment import pick_device, seed_all
from uss_utils.presets import (
    Channels,
    Count,
    LessThanAll,
    NotNegative,
    Pixels,
    Positive,
    Range,
    Share,
    Whole,
    check_fields,
)
from uss_utils.training import EMA, History, Step, cosine_ramp, cosine_schedule, fit
from uss_utils.unlabelled import SCENE_KINDS as SCENE_KINDS
from uss_utils.unlabelled import Unlabelled, gather
from uss_utils.views import View, matched_points, two_views


@dataclass(frozen=True)
class Config:
    """Settings of one pretraining run; the defaults made the shipped weights."""

    datasets: tuple[str, ...] = ("scenes", "scenes-aerial")
    images: Count = 5000  # per data set, at most
    # photographs are resized to it
    image_size: tuple[Pixels, Pixels] | None = None
    window: Pixels = 128  # both views are cut from one window of this side, in pixels
    view: Pixels = 96  # side of a view, in pixels
    scale: tuple[Share, Share] = (0.4, 1.0)  # share of the window's area a view covers
    batch_size: Count = 24
    vicreg_steps: Whole = 2400
    vicreg_lr: NotNegative = 1e-3
    distil_steps: Whole = 800
    distil_lr: NotNegative = 5e-4
    weight_decay: NotNegative = 0.05
    warmup: Share = 0.05  # share of a stage's steps
    clip_norm: Positive = 3.0
    expander: Channels = 512
    pairs: Count = 3000  # patch pairs per step at most
    vicreg_mask: LessThanAll = 0.10  # share of patches hidden from the network
    jitter: NotNegative = 0.04  # shift of the matched point, in half view sides
    prototypes: Channels = 64
    distil_mask: LessThanAll = 0.15
    teacher_temperature: Positive = 0.04
    student_temperature: Positive = 0.1
    teacher_momentum: Share = 0.996  # rises to 1 along a half cosine
    precision: Literal["bf16", "fp16", "no"] = "bf16"  # "no": float32
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0

    def __post_init__(self) -> None:
        """Check types, choices and ranges before any image is made.

        Raises:
            ValueError: a field does not fit.
        """
        check_fields(self)


# ------------------------------------------------------------------------- network


def patch_tokens(vit: VisionTransformer, image: Tensor, mask: Tensor | None) -> Tensor:
    """Patch tokens after the final norm, some patches hidden from the network.

    Args:
        vit: a timm vision transformer made with ``dynamic_img_size=True``.
        image: shape (B, 3, H, W).
        mask: bool, shape (B, h, w); hidden patches are replaced by the mean patch
            embedding of the batch, so the network must fill them in from their
            surroundings. None hides nothing.

    Returns:
        Shape (B, C, h, w).
    """
    x = vit.patch_embed(image)  # Shape: (B, h, w, C)
    h, w = x.shape[1:3]
    if mask is not None:
        mean = x.mean(dim=(0, 1, 2)).to(x.dtype)
        x = torch.where(mask[..., None].to(x.device), mean, x)
    x = vit.norm(vit.blocks(vit._pos_embed(x)))[:, vit.num_prefix_tokens :]
    return x.transpose(1, 2).reshape(len(image), -1, h, w)


def _mlp(widths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(before, after), nn.LayerNorm(after), nn.GELU()]
    return nn.Sequential(*layers[:-2])


class DenseVICReg(nn.Module):
    """Tiny ViT and the expander that VICReg's loss looks through.

    Args:
        vit: network to be trained.
        expander: width of the two layers that follow it; thrown away afterwards.
    """

    def __init__(self, vit: VisionTransformer, expander: int = 512):
        super().__init__()
        self.vit = vit
        self.expander = _mlp((vit.embed_dim, expander, expander))

    def forward(
        self, image: Tensor, image2: Tensor, points: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Expanded codes of both views at the same scene points.

        Args:
            image: first view, shape (B, 3, v, v).
            image2: second view.
            points: where the first view's patches lie in the second, (B, g, g, 2).
            mask: patches hidden in either view, bool, shape (2B, g, g).

        Returns:
            Two tensors (B, g, g, D).
        """
        tokens = patch_tokens(self.vit, torch.cat([image, image2]), mask)
        first, second = tokens.float().chunk(2)
        second = F.grid_sample(
            second, points, padding_mode="border", align_corners=False
        )
        both = torch.stack([first, second]).permute(0, 1, 3, 4, 2)
        return without_image_mean(*self.expander(both))


def without_image_mean(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Subtract from both views of an image the mean code they have in common.

    What is alike all over an image (its light, its style) satisfies both losses at no
    cost and then dominates the features: clusters become groups of images. Without
    the common mean only differences inside an image are left to learn.

    Args:
        first: codes of the first view, shape (B, g, g, D).
        second: codes of the second view, same shape.
    """
    mean = (first.mean((1, 2), keepdim=True) + second.mean((1, 2), keepdim=True)) / 2
    return first - mean, second - mean


def vicreg_loss(z: Tensor, z2: Tensor) -> dict[str, Tensor]:
    """The three terms of VICReg (eq. 1-6), weights 25, 25 and 1.

    Args:
        z: codes of the first view, one row per matched patch, shape (P, D).
        z2: codes of the second view at the same scene points, shape (P, D).

    Returns:
        "invariance" (mean squared difference), "variance" (hinge that keeps the
        standard deviation of every dimension above 1), "covariance" (squared
        off-diagonal entries per dimension) and their weighted sum "loss".
    """
    invariance = F.mse_loss(z, z2)
    variance = covariance = 0.0
    for x in (z, z2):
        centred = x - x.mean(0)
        std = (centred.square().mean(0) + 1e-4).sqrt()
        variance = variance + F.relu(1 - std).mean() / 2
        cov = centred.T @ centred / (len(x) - 1)
        squares = cov.square().sum() - cov.diagonal().square().sum()
        covariance = covariance + squares / x.shape[1]
    loss = 25 * invariance + 25 * variance + covariance
    return {
        "loss": loss,
        "invariance": invariance,
        "variance": variance,
        "covariance": covariance,
    }


class Namer(nn.Module):
    """A vision transformer that names its patches with prototypes.

    Args:
        vit: the network.
        prototypes: number of names.
    """

    def __init__(self, vit: VisionTransformer, prototypes: int):
        super().__init__()
        self.vit = vit
        self.head = _mlp((vit.embed_dim, 2 * vit.embed_dim, vit.embed_dim))
        self.prototypes = nn.Parameter(torch.randn(prototypes, vit.embed_dim))

    def forward(self, views: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Cosines of the patches with the prototypes.

        Args:
            views: first views, then second views, shape (2B, 3, v, v).
            mask: patches hidden from the network, bool, shape (2B, g, g), or None.

        Returns:
            One tensor (B, K, g, g) per view.
        """
        tokens = patch_tokens(self.vit, views, mask).float().permute(0, 2, 3, 1)
        code = self.head(torch.stack(without_image_mean(*tokens.chunk(2)))).float()
        cosine = F.normalize(code, dim=-1) @ F.normalize(self.prototypes, dim=-1).T
        return tuple(cosine.permute(0, 1, 4, 2, 3))


class DenseDistillation(nn.Module):
    """Student and teacher: the same network, one of them a slow average of the other.

    Args:
        vit: the student's network, already pretrained.
        prototypes: number of names.
    """

    def __init__(self, vit: VisionTransformer, prototypes: int = 64):
        super().__init__()
        self.student = Namer(vit, prototypes)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)


@torch.no_grad()
def sinkhorn(scores: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Soft assignment in which every prototype is used equally often (SwAV eq. 3).

    Args:
        scores: cosines, shape (P, K).
        temperature: softness; small values give nearly one-hot rows.
        iterations: row and column normalisations.

    Returns:
        Shape (P, K); rows sum to 1.
    """
    q = ((scores - scores.max()) / temperature).exp()
    for _ in range(iterations):
        q = q / q.sum(0, keepdim=True).clamp(min=1e-30)
        q = q / q.sum(1, keepdim=True).clamp(min=1e-30)
    return q


# --------------------------------------------------------------- losses of one step


def _pick(valid: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Indices of at most ``most`` true entries of a flattened mask, at random."""
    where = valid.flatten().nonzero()[:, 0]
    return where[torch.randperm(len(where), generator=generator)[:most]]


def _views_of(
    images: Tensor, cfg: Config, step: Step, upright: Tensor | None
) -> tuple[View, View]:
    return two_views(
        images,
        window=cfg.window,
        view=cfg.view,
        scale=cfg.scale,
        generator=step.generator,
        upright=upright,
    )


def vicreg_step(
    model: DenseVICReg,
    images: Tensor,
    step: Step,
    cfg: Config,
    upright: Tensor | None = None,
) -> dict[str, Tensor]:
    """Loss of one dense VICReg step on uint8 images (B, H, W, 3)."""
    a, b = _views_of(images, cfg, step, upright)
    grid = cfg.view // model.vit.patch_embed.patch_size[0]
    points, valid = matched_points(a, b, grid)
    shift = torch.rand(points.shape, generator=step.generator) * 2 - 1
    mask = torch.rand(2 * len(images), grid, grid, generator=step.generator)
    points = (points + cfg.jitter * shift).to(a.image)
    z, z2 = model(a.image, b.image, points, mask < cfg.vicreg_mask)
    rows = _pick(valid, cfg.pairs, step.generator).to(z.device)
    return vicreg_loss(z.flatten(0, 2)[rows].float(), z2.flatten(0, 2)[rows].float())


def distil_step(
    model: DenseDistillation,
    images: Tensor,
    step: Step,
    cfg: Config,
    upright: Tensor | None = None,
) -> dict[str, Tensor]:
    """Loss of one dense self-distillation step on uint8 images (B, H, W, 3)."""
    a, b = _views_of(images, cfg, step, upright)
    grid = cfg.view // model.student.vit.patch_embed.patch_size[0]
    mask = torch.rand(2 * len(images), grid, grid, generator=step.generator)
    views = torch.cat([a.image, b.image])
    student = model.student(views, mask < cfg.distil_mask)
    with torch.no_grad():
        teacher = model.teacher(views, None)
    terms = []
    for (one, two), own, other in (((a, b), 0, 1), ((b, a), 1, 0)):
        points, valid = matched_points(one, two, grid)
        target = F.grid_sample(
            teacher[other],
            points.to(a.image),
            padding_mode="border",
            align_corners=False,
        )
        rows = _pick(valid, cfg.pairs, step.generator).to(target.device)
        names = sinkhorn(_rows(target)[rows], cfg.teacher_temperature)
        log_p = (_rows(student[own])[rows] / cfg.student_temperature).log_softmax(-1)
        terms.append(-(names * log_p).sum(-1).mean())
    usage = names.mean(0)
    return {
        "loss": (terms[0] + terms[1]) / 2,
        "sharpness": names.max(-1).values.mean(),
        "usage_entropy": -(usage * usage.clamp(min=1e-12).log()).sum(),
    }


def _rows(scores: Tensor) -> Tensor:
    """(B, K, g, g) -> (B g g, K)."""
    return scores.permute(0, 2, 3, 1).flatten(0, 2)


# ----------------------------------------------------------------------------- runs


def unlabelled(cfg: Config, root: str | Path | None = None) -> Unlabelled:
    """The images a run looks at; see :func:`uss_utils.unlabelled.gather`."""
    return gather(
        cfg.datasets, cfg.images, image_size=cfg.image_size, seed=cfg.seed, root=root
    )


def pretrain(
    cfg: Config,
    data: Unlabelled,
    *,
    folder: Path | None = None,
    device: str | torch.device = "cpu",
    progress: str | None = "bar",
) -> tuple[VisionTransformer, dict[str, History]]:
    """Run both stages.

    Args:
        cfg: settings; a stage with 0 steps is left out.
        data: unlabelled images.
        folder: where checkpoints go, so that a killed run continues; None keeps none.
        device: where to train; "auto" picks.
        progress: "bar", "lines" or None.

    Returns:
        The trained network on the CPU and the history of each stage ("vicreg",
        "distil").

    Raises:
        ValueError: checkpoints in ``folder`` belong to other settings.
        FloatingPointError: the loss became non-finite.
    """
    device = pick_device(str(device))
    # The draws that make the initial weights must not depend on what ran before.
    seed_all(cfg.seed)
    vit = tiny_vit(cfg.seed)
    if device.type == "cpu":
        # With so few patches plain attention is faster than the fused kernel: a step
        # takes 0.27 s instead of 0.36 s on two cores.
        for block in vit.blocks:
            block.attn.fused_attn = False
    histories = {}
    if cfg.vicreg_steps:
        model = DenseVICReg(vit, cfg.expander)
        histories["vicreg"] = _stage(
            "vicreg", model, cfg, data, folder, device, progress
        )
    if cfg.distil_steps:
        model = DenseDistillation(vit, cfg.prototypes)
        histories["distil"] = _stage(
            "distil", model, cfg, data, folder, device, progress
        )
        vit.load_state_dict(model.teacher.vit.state_dict())
    return vit.cpu().eval().requires_grad_(False), histories


def _stage(name, model, cfg, data, folder, device, progress) -> History:
    loss, ema = vicreg_step, None
    if name == "distil":
        momentum = cosine_ramp(cfg.teacher_momentum)
        loss, ema = distil_step, EMA(model.student, momentum, target=model.teacher)
    return fit(
        model,
        lambda model, images, step: loss(
            model, images, step, cfg, data.upright[step.indices]
        ),
        data,
        steps=getattr(cfg, f"{name}_steps"),
        batch_size=cfg.batch_size,
        optimisers=torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=getattr(cfg, f"{name}_lr"),
            weight_decay=cfg.weight_decay,
        ),
        schedule=cosine_schedule(cfg.warmup),
        ema=ema,
        clip_norm=cfg.clip_norm,
        precision=cfg.precision,
        seed=cfg.seed,
        device=device,
        checkpoint=folder and Path(folder) / f"{name}.safetensors",
        checkpoint_every=250,
        log_every=20,
        progress=progress,
        config=asdict(cfg),
    )
