"""torchvision's classifiers as students: whole, their heads' parameters fixed, read before the head."""

from typing import Any

import torch
from torch import Tensor, nn

from eva_fast.errors import UsageError
from eva_fast.layers.inputs import IMAGENET_MEAN, IMAGENET_STD
from eva_fast.libraries import library, unknown
from eva_fast.model.networks.base import REFUSALS, Library, Statistics
from eva_fast.model.networks.drop_path import DrawnDropPath, replace_drop_paths

HEADS = {
    "avgpool", "classifier", "head", "heads", "fc", "flatten", "dropout", "AuxLogits", "aux1",
    "aux2",
}  # fmt: skip
"""Top-level modules of the classifiers that come after the last features."""
IMAGE_SIDE = 224
CHANNELS, IN_CHANS = "channels", "in_chans"
"""The option, and what it is called among a network's arguments, after timm's. torchvision's builders
have no such argument: the first convolution is exchanged (`see_channels`)."""
_INCEPTIONS = ("googlenet", "inception_v3")
OTHERWISE = "or take a model of this package, eva_SIZE_patchP_R"


class Torchvision(Library):
    """Models of `torchvision.models.get_model` that classify images."""

    title = family = "torchvision"

    def __init__(self, name: str):
        super().__init__(name)
        known = self.models.list_models(module=self.models)
        if self.model not in known:
            raise unknown("torchvision model", self.model, known)

    @property
    def models(self) -> Any:
        """The library's; no attribute, so that networks can be copied and pickled."""
        return library("torchvision", "torchvision", self.name, OTHERWISE).models

    def settle(self, asked: dict[str, int]) -> tuple[int, dict[str, Any]]:
        for option in asked:
            if option not in ("img_size", CHANNELS):
                raise self.takes_not(option)
        side = asked.get("img_size", IMAGE_SIDE)
        fixed = self.model.startswith("vit_") and side != IMAGE_SIDE
        arguments: dict[str, Any] = {"image_size": side} if fixed else {}
        if CHANNELS in asked:
            arguments[IN_CHANS] = asked[CHANNELS]
        return side, arguments

    def build(self, arguments: dict[str, Any], drop_path: float = 0.0) -> nn.Module:
        # Said, so that these two need no warning and no library for their initial values.
        quiet = {"init_weights": False} if self.model in _INCEPTIONS else {}
        own = {name: value for name, value in arguments.items() if name != IN_CHANS}
        try:
            network = self.models.get_model(self.model, weights=None, **quiet, **own)
        except REFUSALS as error:
            raise self.refused(arguments, error) from error
        if IN_CHANS in arguments:
            see_channels(network, arguments[IN_CHANS])
        return network

    def first_weights(self, network: nn.Module) -> list[str]:
        return [f"{first_convolution(network)[0]}.weight"]

    def drop_paths(self, network: nn.Module, rate: float) -> list[DrawnDropPath]:
        """Their rates are set to grow linearly, as torchvision's own do."""
        from torchvision.ops import StochasticDepth

        found = replace_drop_paths(network, StochasticDepth, "p")
        for number, path in enumerate(found):
            path.rate = rate * number / max(len(found) - 1, 1)
        return found

    def features(self, network: nn.Module, images: Tensor, node: str | None) -> Tensor:
        assert node is not None
        found: list[Tensor] = []
        hook = network.get_submodule(node).register_forward_hook(
            lambda module, given, out: found.append(out)
        )
        try:
            network(images)
        finally:
            hook.remove()
        return found[-1]

    def node(self, network: nn.Module, images: Tensor) -> str | None:
        return last_spatial(network, images)

    def blocks(self, network: nn.Module) -> list[nn.Module]:
        layers = getattr(getattr(network, "encoder", None), "layers", None)
        return list(layers) if isinstance(layers, nn.Sequential) else []

    def recompute(self, network: nn.Module, enable: bool) -> None:
        if enable:
            raise UsageError(
                f"torchvision has no activation checkpointing of {self.model!r}: leave "
                "grad_checkpointing out, or take timm's network of that kind"
            )

    def statistics(self, network: nn.Module) -> Statistics:
        return Statistics(IMAGENET_MEAN, IMAGENET_STD)


def first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d]:
    """The convolution that sees the image, and its name."""
    return next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))


@torch.no_grad()
def see_channels(network: nn.Module, channels: int) -> None:
    """Puts a convolution of so many channels in the place of the first, random values from a normal
    distribution as wide as those that it had."""
    name, old = first_convolution(network)
    new = nn.Conv2d(
        channels, old.out_channels, old.kernel_size, old.stride, old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None, device=old.weight.device,
    )  # fmt: skip
    if not old.weight.is_meta:
        new.weight.normal_(0, float(old.weight.std()))
        if old.bias is not None and new.bias is not None:
            new.bias.copy_(old.bias)
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, new)


@torch.no_grad()
def last_spatial(network: nn.Module, images: Tensor) -> str:
    """Name of the last module before the head of a torchvision classifier that gives a map or a token
    sequence for such images, which may be without values. UsageError where none does."""
    last = ""
    hooks = []
    for name, module in network.named_modules():
        if name and name.split(".")[0] not in HEADS:

            def record(_: nn.Module, __: Any, out: Any, name: str = name) -> None:
                nonlocal last
                if isinstance(out, Tensor) and out.ndim in (3, 4) and out.shape[-2] > 1:
                    last = name

            hooks.append(module.register_forward_hook(record))
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    if not last:
        raise UsageError(
            f"torchvision's {type(network).__name__} has no features of more than one place for images "
            f"of {images.shape[2]}x{images.shape[3]} pixels"
        )
    return last
