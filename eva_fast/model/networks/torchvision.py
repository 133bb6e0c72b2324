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
            if option != "img_size":
                raise self.takes_not(option)
        side = asked.get("img_size", IMAGE_SIDE)
        fixed = self.model.startswith("vit_") and side != IMAGE_SIDE
        return side, {"image_size": side} if fixed else {}

    def build(self, arguments: dict[str, Any], drop_path: float = 0.0) -> nn.Module:
        # Said, so that these two need no warning and no library for their initial values.
        quiet = {"init_weights": False} if self.model in _INCEPTIONS else {}
        try:
            return self.models.get_model(self.model, weights=None, **quiet, **arguments)
        except REFUSALS as error:
            raise self.refused(arguments, error) from error

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
