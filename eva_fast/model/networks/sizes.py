"""What a network of another library gives, found without values: on the meta device."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eva_fast.errors import UsageError, first_line
from eva_fast.model.networks.base import REFUSALS, Library, without_values
from eva_fast.model.networks.timm import Timm
from eva_fast.model.networks.torchvision import Torchvision

LIBRARIES: dict[str, type[Library]] = {kind.family: kind for kind in (Timm, Torchvision)}
Arguments = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneSizes:
    """Everything that fixes the shapes of a network of another library as a student."""

    name: str
    """FAMILY/MODEL, as the option `model` has it."""
    img_size: int
    """Side of the square input in pixels."""
    arguments: Arguments
    """What the library's builder is given beside the model's name."""
    grid: tuple[int, int]
    """Cells of the last features down and across: those that are predicted."""
    width: int
    """Of the last features."""
    embed_dim: int
    """Of the patches that a mask token can stand for; 0 where there are none."""
    prefix_tokens: int
    """Tokens in front of those of the image: CLS and registers."""
    has_cls: bool
    """Whether the first of them is a CLS token."""
    depth: int
    """Blocks, where they all have one shape; else 1."""
    channels: int = 3
    """Of the images."""
    predict_dim: int = 1
    """Width of the prediction: the teacher's feature dimension. The network itself has no head."""

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def can_mask(self) -> bool:
        """Whether its patches are tokens from the first block to the last."""
        return self.embed_dim > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """How a network's features are read."""

    node: str | None
    """`Library.node`."""
    channels_last: bool
    """Of a map: whether it is [B,h,w,D]."""
    unused: frozenset[str]
    """Parameters that no feature depends on: heads."""


def is_backbone(name: str | None) -> bool:
    """Whether a student's name asks for a network of another library."""
    return name is not None and name.partition("/")[0] in LIBRARIES and "/" in name


def library_of(name: str) -> Library:
    """The library of a student's name. UsageError where it is not installed or does not know it."""
    return LIBRARIES[name.partition("/")[0]](name)


def backbone_sizes_of(name: str, **overrides: int | None) -> BackboneSizes:
    """Sizes of a network by its name, those that are not None in `overrides` other than its own.
    UsageError for a name that the library does not know, and for sizes that it does not take."""
    asked = {k: v for k, v in overrides.items() if v is not None}
    predict = asked.pop("predict_dim", 1)
    for option, value in asked.items():
        if value < 1:
            raise UsageError(f"{option} must be a whole number of at least 1, got {value!r}")
    if asked.get("channels") == 3:
        del asked["channels"]
    side, arguments = library_of(name).settle(asked)
    return built_sizes(name, side, arguments, predict)


def built_sizes(
    name: str, img_size: int, arguments: Mapping[str, Any], predict_dim: int = 1
) -> BackboneSizes:
    """Sizes of a network that the builder makes of these arguments."""
    fixed = tuple((key, _frozen(value)) for key, value in arguments.items())
    found = _probe(name, img_size, fixed)[0]
    return BackboneSizes(**{**found, "predict_dim": predict_dim})


def trains_on_one_image(sizes: BackboneSizes) -> bool:
    """Whether a forward in training takes a single image: a batch norm behind a pooling has one value a
    channel then, and no deviation."""
    library = library_of(sizes.name)
    with without_values():
        network = library.build(dict(sizes.arguments)).train()
        images = torch.empty(1, sizes.channels, sizes.img_size, sizes.img_size)
        try:
            _forward(library, network, images, reading(sizes).node)
        except ValueError as error:  # of torch.nn.functional.batch_norm
            if "more than 1 value per channel" in str(error):
                return False
            raise
    return True


def reading(sizes: BackboneSizes) -> Reading:
    """How the features of the network of these sizes are read."""
    return _probe(sizes.name, sizes.img_size, sizes.arguments)[1]


@functools.lru_cache(maxsize=64)
def _probe(name: str, side: int, arguments: Arguments) -> tuple[dict[str, Any], Reading]:
    library = library_of(name)
    with without_values():
        network = library.build(dict(arguments)).train()
        channels = dict(arguments).get("in_chans", 3)
        images = torch.empty(2, channels, side, side)
        try:
            node = library.node(network, images)
            found, patches = _forward(library, network, images, node)
            found.sum().backward()
        except REFUSALS as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(
                f"{library.title}'s {library.model!r} does not run on images of {side}x{side} pixels: "
                f"{first_line(error)}"
            ) from error
    _check_patches(library, network, side)
    shape = _shape(network, found)
    rows, columns = shape["grid"]
    blocks = library.blocks(network)
    sizes = dict(
        name=name, img_size=side, arguments=arguments,
        grid=shape["grid"], width=shape["width"], prefix_tokens=shape["prefix"],
        has_cls=shape["prefix"] > 0 and _has_cls(network),
        embed_dim=_maskable(patches, (rows, columns)), depth=max(len(blocks), 1),
        channels=channels,
    )  # fmt: skip
    unused = frozenset(n for n, p in network.named_parameters() if p.grad is None)
    return sizes, Reading(node=node, channels_last=shape["channels_last"], unused=unused)


def _forward(
    library: Library, network: nn.Module, images: Tensor, node: str | None
) -> tuple[Tensor, Any]:
    """(features, what `patch_embed` gave)."""
    given: list[Any] = []
    embed = getattr(network, "patch_embed", None)
    hook = None
    if isinstance(embed, nn.Module):
        hook = embed.register_forward_hook(lambda module, inputs, out: given.append(out))
    try:
        found = library.features(network, images, node)
    finally:
        if hook is not None:
            hook.remove()
    return found, given[0] if len(given) == 1 else None


def _shape(network: nn.Module, found: Tensor) -> dict[str, Any]:
    """Grid, width, tokens in front and order of the dimensions of features of square images."""
    if not isinstance(found, Tensor) or found.ndim not in (3, 4):
        raise UsageError(f"{type(network).__name__} gives no features of places in the image")
    if found.ndim == 3:
        tokens, width = found.shape[1:]
        own = getattr(network, "num_prefix_tokens", None)
        side = math.isqrt(tokens - (own or 0))
        prefix = tokens - side * side
        return dict(grid=(side, side), width=width, prefix=prefix, channels_last=True)
    named = getattr(network, "num_features", None)
    said = str(getattr(network, "output_fmt", "")).endswith("NHWC")
    last = said or (found.shape[1] != named and found.shape[3] == named)
    rows, columns, width = found.shape[1:] if last else (*found.shape[2:], found.shape[1])
    return dict(grid=(rows, columns), width=width, prefix=0, channels_last=last)


def _has_cls(network: nn.Module) -> bool:
    """Whether the token in front of all others is a CLS token, and no register."""
    tokens = ("cls_token", "class_token")
    return any(name.rpartition(".")[2] in tokens for name, _ in network.named_parameters())


def _maskable(patches: Any, grid: tuple[int, int]) -> int:
    """Width of what `patch_embed` gave where that is a token for each cell of the last features."""
    if not isinstance(patches, Tensor):
        return 0
    if patches.ndim == 4 and tuple(patches.shape[1:3]) == grid:
        return patches.shape[3]
    if patches.ndim == 3 and patches.shape[1] == grid[0] * grid[1]:
        return patches.shape[2]
    return 0


def _check_patches(library: Library, network: nn.Module, side: int) -> None:
    """UsageError where patches leave a border of the image out."""
    patch = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    patch = patch[0] if isinstance(patch, tuple) else patch
    if isinstance(patch, int) and side % patch:
        raise UsageError(f"img_size {side} is not a multiple of patch_size {patch}")


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value
