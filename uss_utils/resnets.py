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

# Name -> (channels of the features, torchvision's ImageNet weights on the model hub).
RESNETS = {
    "resnet18": (512, "timm/resnet18.tv_in1k"),
    "resnet50": (2048, "timm/resnet50.tv_in1k"),
}
# Wrappers of a stored encoder: MoCo keeps its query encoder beside the key encoder.
QUERY = "encoder_q."


class DilatedResNet(nn.Module):
    """torchvision's ResNet at stride 8, without pooling and classifier.

    Its parameters have torchvision's names. They are drawn from torch's global
    generator.

    Args:
        name: "resnet18" or "resnet50".

    Attributes:
        dim: channels C of the features.

    Raises:
        ValueError: another name.
    """

    def __init__(self, name: str = "resnet50"):
        super().__init__()
        if name not in RESNETS:
            raise ValueError(f"unknown ResNet {name!r}; known: {', '.join(RESNETS)}")
        self.name, self.dim = name, RESNETS[name][0]
        whole = getattr(torchvision.models, name)()
        for part, module in whole.named_children():
            if part not in ("avgpool", "fc"):
                self.add_module(part, module)
        _remove_stride(self.layer3, 1)
        _remove_stride(self.layer4, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Features of normalised images: (B, 3, H, W) -> (B, C, H / 8, W / 8).

        Sides that are no multiple of 8 are rounded up.
        """
        x = images
        for module in self.children():
            x = module(x)
        return x

    def stages(self) -> list[list[nn.Module]]:
        """Parts in order: the stem with the first stage, then stage after stage."""
        stem = [self.conv1, self.bn1]
        return [[*stem, self.layer1], [self.layer2], [self.layer3], [self.layer4]]


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
    name: str = "resnet50", weights: str | Path | None = None
) -> DilatedResNet:
    """A :class:`DilatedResNet` with given weights.

    Args:
        name: "resnet18" or "resnet50".
        weights: None: random; "imagenet": torchvision's first ImageNet weights, from
            the local cache or the model hub; or a ``.safetensors`` or ``.pth`` file
            with torchvision's names, such as one of MoCo v2, whose query encoder is
            taken. A classifier is left aside.

    Raises:
        ValueError: unknown name, or a file that is damaged or of another model.
        FileNotFoundError: no such file.
        ConnectionError: the ImageNet weights are not here and cannot be fetched.
    """
    network = DilatedResNet(name)
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
    state = {k: v for k, v in state.items() if not k.startswith("fc.")}
    return {**counters, **state}
