"""ResNets with a fine grid: stride 8 instead of 32, the rest made up by dilation.

The strides of stages 3 and 4 are removed; every convolution behind a removed stride
looks at pixels that lie twice as far apart. So the network computes what it did, at
sixteen times as many places (Chen et al., DeepLab, TPAMI 2018, section 3.1), and
weights trained at stride 32 keep their meaning.
"""

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
# Wrappers of a stored encoder: MoCo keeps its query encoder beside the key encoder.
QUERY = "encoder_q."


class DilatedResNet(nn.Module):
    """torchvision's ResNet at stride 8, without pooling and classifier.

    Its parameters have torchvision's names. They are drawn from torch's global
    generator.

    Args:
        name: "resnet18" or "resnet50".
        n_stages: leave out what follows this residual stage; small images and small
            machines need no more than two.

    Attributes:
        dim: channels C of the features.
        stride: pixels from one place of the features to the next.

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
        self.stride = 4 if n_stages == 1 else 8
        left_out = {f"layer{k}" for k in range(n_stages + 1, STAGES + 1)}
        whole = getattr(torchvision.models, name)()
        for part, module in whole.named_children():
            if part not in left_out | {"avgpool", "fc"}:
                self.add_module(part, module)
        for part, dilation in (("layer3", 1), ("layer4", 2)):
            if hasattr(self, part):
                _remove_stride(getattr(self, part), dilation)

    def forward(self, images: Tensor) -> Tensor:
        """Features of normalised images: (B, 3, H, W) -> (B, C, H / 8, W / 8).

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


def _remove_stride(stage: nn.Module, dilation: int) -> None:
    """Undo the stride of a stage whose input is already dilated.

    Args:
        stage: blocks; the first holds a convolution of stride 2, or two in parallel.
        dilation: strides removed before this stage, as their product.
    """
    for module in stage.modules():
        if not isinstance(module, nn.Conv2d):
            continue
        strided = module.stride == (2, 2)
        module.stride = (1, 1)
        if module.kernel_size == (3, 3):
            module.dilation = module.padding = (dilation, dilation)
        if strided and module.kernel_size == (3, 3):
            dilation *= 2


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
