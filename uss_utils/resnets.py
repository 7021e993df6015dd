"""ResNets with a fine grid: stride 8 or 16 instead of 32, made up by dilation.

Strides of stages 3 and 4 are removed; every convolution behind a removed stride looks
at pixels that lie twice as far apart. So the network computes what it did, at up to
sixteen times as many places (Chen et al., DeepLab, TPAMI 2018, section 3.1), and
weights trained at stride 32 keep their meaning. In the same way weights trained at
stride 16 can be used at stride 8.
"""

from collections.abc import Iterator
from pathlib import Path

import torchvision
from torch import Tensor, nn

from uss_utils.vit_weights import fill, hub_file, read_weights

# Name -> (channels of the first stage, torchvision's ImageNet weights on the hub).
RESNETS = {
    "resnet18": (64, "timm/resnet18.tv_in1k"),
    "resnet50": (256, "timm/resnet50.tv_in1k"),
}
STAGES = 4
STRIDES = (8, 16, 32)
# Wrappers of a stored encoder: MoCo keeps its query encoder beside the key encoder.
QUERY = "encoder_q."


class DilatedResNet(nn.Module):
    """torchvision's ResNet on a fine grid, without pooling and classifier.

    Its parameters have torchvision's names. They are drawn from torch's global
    generator: convolutions from a normal distribution of variance 2 / (k^2 out).

    Args:
        name: "resnet18" or "resnet50".
        n_stages: leave out what follows this residual stage; small images and small
            machines need no more than two.

    Attributes:
        dim: channels C of the features.
        stride: pixels from one place of the features to the next: 4 behind one stage,
            8 behind two, else 8 or what :meth:`set_stride` was told.

    Raises:
        ValueError: another name, or no such stage.
    """

    def __init__(self, name: str = "resnet50", n_stages: int = STAGES):
        super().__init__()
        if name not in RESNETS:
            raise ValueError(f"unknown ResNet {name!r}; known: {', '.join(RESNETS)}")
        if not 1 <= n_stages <= STAGES:
            raise ValueError(f"a ResNet has 1 to {STAGES} stages, got {n_stages}")
        self.name, self.n_stages = name, n_stages
        self.dim = RESNETS[name][0] * 2 ** (n_stages - 1)
        left_out = {f"layer{k}" for k in range(n_stages + 1, STAGES + 1)}
        whole = getattr(torchvision.models, name)()
        for part, module in whole.named_children():
            if part not in left_out | {"avgpool", "fc"}:
                self.add_module(part, module)
        self._strided = {
            part for part, m in self.named_modules() if _is_strided_convolution(m)
        }
        self.set_stride(8)

    def set_stride(self, stride: int, rates: tuple[int, ...] | None = None) -> None:
        """Choose the grid; the weights stay, and so does what they look at.

        Args:
            stride: pixels between two places behind the last stage: 8, 16 or 32.
            rates: what the last of four stages dilates its blocks by, relative to the
                grid that it is given, such as (1, 4, 8) (Chen et al., DeepLab v3, 2017,
                section 3.2); a network with fewer blocks takes the first ones. None:
                what its removed stride demands. Shorter networks have no such stage.

        Raises:
            ValueError: another stride, rates too few, or rates with stride 32, where
                the last stage keeps its own stride.
        """
        if stride not in STRIDES:
            raise ValueError(f"a ResNet's stride is 8, 16 or 32 here, got {stride}")
        if rates is not None and stride == 32:
            raise ValueError("rates of the last stage need a stride of 8 or 16, not 32")
        reached, dilation = 4, 1
        for number in range(2, self.n_stages + 1):
            stage = f"layer{number}"
            if reached < stride:
                self._set_stage(stage, 2, dilation)
                reached *= 2
            elif number == STAGES and rates is not None:
                self._set_rates(stage, dilation, rates)
            else:
                self._set_stage(stage, 1, dilation)
                dilation *= 2
        self.stride = reached

    def _convolutions(self, stage: str) -> Iterator[tuple[str, nn.Conv2d]]:
        for name, module in getattr(self, stage).named_modules(prefix=stage):
            if isinstance(module, nn.Conv2d):
                yield name, module

    def _set_stage(self, stage: str, stride: int, dilation: int) -> None:
        """Keep a stage's stride (2) or remove it (1).

        Its input is ``dilation`` times as fine as the one that it was made for.
        """
        for name, module in self._convolutions(stage):
            strided = name in self._strided
            module.stride = (stride, stride) if strided else (1, 1)
            if module.kernel_size == (3, 3):
                module.dilation = module.padding = (dilation, dilation)
                if strided and stride == 1:
                    dilation *= 2

    def _set_rates(self, stage: str, dilation: int, rates: tuple[int, ...]) -> None:
        blocks = len(getattr(self, stage))
        if len(rates) < blocks:
            raise ValueError(
                f"the last stage of {self.name} has {blocks} blocks, got rates {rates}"
            )
        for name, module in self._convolutions(stage):
            module.stride = (1, 1)
            if module.kernel_size == (3, 3):
                rate = dilation * rates[int(name.split(".")[1])]
                module.dilation = module.padding = (rate, rate)

    def forward(self, images: Tensor) -> Tensor:
        """Features of normalised images: (B, 3, H, W) -> (B, C, H / stride, ...).

        Sides that are no multiple of the stride are rounded up.
        """
        x = images
        for module in self.children():
            x = module(x)
        return x

    def stages(self) -> list[list[nn.Module]]:
        """Parts in order: the stem with the first stage, then stage after stage."""
        layers = [getattr(self, f"layer{k + 1}") for k in range(self.n_stages)]
        return [[self.conv1, self.bn1, layers[0]], *([layer] for layer in layers[1:])]


def _is_strided_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.stride == (2, 2)


def check_start(start: str | Path) -> None:
    """Look for a network's first weights before hours are spent on anything else.

    Args:
        start: "random", "imagenet", or a file.

    Raises:
        FileNotFoundError: the file is not there.
    """
    if start in ("random", "imagenet") or Path(start).expanduser().is_file():
        return
    raise FileNotFoundError(
        f"no weights to start from at {start}; name their file with --set start=FILE "
        "(MoCo v2's 800 epochs are on the page of its authors, facebookresearch/moco), "
        "or use start=imagenet or start=random"
    )


def dilated_resnet(
    name: str = "resnet50",
    weights: str | Path | None = None,
    n_stages: int = STAGES,
) -> DilatedResNet:
    """A :class:`DilatedResNet` with given weights.

    Args:
        name: "resnet18" or "resnet50".
        weights: None: random; "imagenet": torchvision's first ImageNet weights, from
            the local cache or the model hub; or a ``.safetensors`` or ``.pth`` file
            with torchvision's names, such as one of MoCo v2, whose query encoder is
            taken. A classifier is left aside.
        n_stages: see :class:`DilatedResNet`; weights of others are left aside.

    Raises:
        ValueError: unknown name, or a file that is damaged or of another model.
        FileNotFoundError: no such file.
        ConnectionError: the ImageNet weights are not here and cannot be fetched.
    """
    network = DilatedResNet(name, n_stages)
    if weights is None:
        return network
    if str(weights) == "imagenet":
        advice = (
            f'dilated_resnet("{name}", weights="<file>"). Without network, '
            "weights=None starts from random weights"
        )
        weights = hub_file(RESNETS[name][1], name, advice)
    fill(network, _encoder(read_weights(weights), network), str(weights), name)
    return network


def _encoder(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The encoder's own entries of a state dict, under torchvision's names."""
    state = {name.removeprefix("module."): value for name, value in state.items()}
    if any(name.startswith(QUERY) for name in state):
        state = {
            name.removeprefix(QUERY): value
            for name, value in state.items()
            if name.startswith(QUERY)
        }
    # Counters of batches, which older files lack, change nothing here.
    counters = {k: v for k, v in network.state_dict().items() if not v.ndim}
    kept = {f"layer{k + 1}" for k in range(network.n_stages)}
    state = {
        name: value
        for name, value in state.items()
        if (part := name.split(".")[0]) != "fc"
        and (part in kept or not part.startswith("layer"))
    }
    return {**counters, **state}
