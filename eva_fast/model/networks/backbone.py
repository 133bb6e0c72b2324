"""A network of another library as a student: timm's and torchvision's, under their own names.

The network is the library's own, untouched but for its drop-paths (`drop_path.py`). Images are
normalised with what its own weights were trained with, so that it can be used as any other of its name.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from eva_fast import world
from eva_fast.errors import UsageError
from eva_fast.layers import plain
from eva_fast.layers.recompute import run_branches, spread
from eva_fast.model.networks.drop_path import draw_all
from eva_fast.model.networks.sizes import BackboneSizes, library_of, reading
from eva_fast.model.official import Official


class Backbone(Official):
    """A network without a head: `forward_features(images)` is [B,T,D], registers and CLS first.

    `images` are uint8 [B,3,H,W] (normalised inside) or floats already normalised. The network itself is
    `network`; official names are those of its own state dict. Its heads' parameters, which no feature
    depends on, do not train.

    Args:
        sizes: of `backbone_sizes_of`.
        drop_path: rate of the last block, where the network has drop-paths.
        compute_dtype: dtype of the arithmetic, by autocast; parameters stay float32.
    """

    fused = False

    def __init__(
        self,
        sizes: BackboneSizes,
        drop_path: float = 0.0,
        compute_dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        self.sizes, self.grid, self.width = sizes, sizes.grid, sizes.width
        self.prefix_tokens = sizes.prefix_tokens
        self.precision = plain.Precision(compute_dtype)
        self.library, self._reading = library_of(sizes.name), reading(sizes)
        self.unused = self._reading.unused
        """Parameters of the network that no feature depends on."""
        self.network = self.library.build(dict(sizes.arguments), drop_path)
        self.mean, self.std = self.library.statistics(self.network)
        # Made once: a step that is captured as a graph makes none.
        self.register_buffer("_mean", torch.tensor(self.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(self.std).view(-1, 1, 1), persistent=False)
        for name, parameter in self.network.named_parameters():
            if name in self.unused:
                parameter.requires_grad_(False)
        self._drop_paths = self.library.drop_paths(self.network, drop_path)
        self.blocks = self.library.blocks(self.network)
        """Of a transformer whose blocks all have one shape; else none."""
        for block in self.blocks:
            block.recompute = False  # type: ignore[assignment]
        self.norm = nn.Identity()
        """What a projector puts before itself: these features are behind the network's last norm."""
        self._statistics = RunningStatistics(self.network)
        for number, buffer in enumerate(self._statistics()):
            self.register_buffer(f"_before_{number}", buffer.clone(), persistent=False)
        self.register_load_state_dict_post_hook(_loaded)

    def forward_features(self, images: Tensor) -> Tensor:
        """All tokens after the last norm, [B,T,D]; of a network with maps their places, row-major."""
        with self.precision.region(images.device.type):
            return self.all_tokens(images)

    def forward(self, images: Tensor) -> Tensor:
        """`forward_features`."""
        return self.forward_features(images)

    def tokens(self, images: Tensor) -> Tensor:
        """Those of CLS, where there is one, and of the patches: [B,1+N,D] or [B,N,D]. Call it inside
        `precision.region`."""
        found, prefix = self.all_tokens(images), self.prefix_tokens
        if not self.sizes.has_cls:
            return found[:, prefix:]
        return found if prefix == 1 else torch.cat((found[:, :1], found[:, prefix:]), dim=1)

    def all_tokens(self, images: Tensor) -> Tensor:
        """`forward_features` inside `precision.region`."""
        self._check_images(images)
        images = self._normalised(images)
        if not self.prefix_tokens and not self.blocks:  # convolutions are faster on such pixels
            images = images.contiguous(memory_format=torch.channels_last)
        draw_all(self._drop_paths, images)
        found = self.library.features(self.network, images, self._reading.node)
        if found.ndim == 3:
            return found
        return found.flatten(1, 2) if self._reading.channels_last else found.flatten(2).mT

    def official_names(self) -> dict[str, str]:
        return {name: name.removeprefix("network.") for name in self.state_dict()}

    def official_state_dict(self) -> dict[str, Tensor]:
        """Copies on the CPU under the library's names; numbers that are not whole in float32."""
        return {
            name: (value.float() if value.is_floating_point() else value).detach().cpu().clone()
            for name, value in self.network.state_dict().items()
        }

    def set_grad_checkpointing(self, enable: bool = True, share: float = 1.0) -> None:
        """Has blocks, or what the library takes for them, keep their inputs alone for the backward pass
        and compute the rest again there. share: of the blocks of a transformer, in (0, 1], evenly
        spread; of other networks it is all or none. UsageError where it cannot be."""
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {share}")
        if not self.blocks:
            self._checkpoint_stages(enable, share)
            return
        chosen = spread(len(self.blocks), share) if enable else []
        for number, block in enumerate(self.blocks):
            block.recompute = number in chosen  # type: ignore[assignment]
            if enable and "forward" not in vars(block):
                block.forward = functools.partial(_recomputed, block, block.forward)

    def _checkpoint_stages(self, enable: bool, share: float) -> None:
        name = self.sizes.name
        if enable and self._statistics():
            raise UsageError(
                f"model {name!r} has batch norms, which activation checkpointing would have count each "
                "batch twice: leave grad_checkpointing out"
            )
        if enable and share < 1:
            raise UsageError(
                f"model {name!r} recomputes all or nothing: leave grad_checkpointing_share at 1"
            )
        self.library.recompute(self.network, enable)

    @property
    def compute_dtype(self) -> torch.dtype:
        """What the products run in while autocast is off."""
        return self.precision.chosen

    @torch.no_grad()
    def after_step(self, applied: Tensor) -> None:
        """Batch norms' running statistics after an optimiser step: the mean over the processes, or as
        before where it was skipped. applied: bool [] on the device."""
        values, before = self._statistics(), self._remembered()
        if not values:
            return
        floats = [v for v in values if v.is_floating_point()]
        if world.world().size > 1:
            together = torch.cat([v.flatten() for v in floats])
            world.mean_(together)
            for value, part in zip(floats, together.split([v.numel() for v in floats])):
                value.copy_(part.view_as(value))
        for value, old in zip(values, before):
            value.copy_(torch.where(applied, value, old))
            old.copy_(value)

    def _remembered(self) -> list[Tensor]:
        return [getattr(self, f"_before_{number}") for number in range(len(self._statistics()))]

    @torch.no_grad()
    def remember(self) -> None:
        """Takes running statistics as they are for those of the last step, as weights were loaded."""
        for value, before in zip(self._statistics(), self._remembered()):
            before.copy_(value)

    def _normalised(self, images: Tensor) -> Tensor:
        """Bytes as `layers.inputs.normalise` makes them, floats as they are, in the network's dtype."""
        if images.dtype == torch.uint8:
            images = (images.float() / 255 - self._mean) / self._std  # type: ignore[operator]
        return images.to(next(self.network.parameters()).dtype)

    def _check_images(self, images: Tensor) -> None:
        side, channels = self.sizes.img_size, self.sizes.channels
        if images.ndim != 4 or images.shape[1:] != (channels, side, side):
            raise ValueError(
                f"images must be [B,{channels},{side},{side}] for this model, got {tuple(images.shape)}"
            )


def _loaded(module: Any, keys: Any) -> None:
    module.remember()


def _recomputed(block: nn.Module, forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    """A block's forward as `run_branches` runs it."""
    return run_branches(block, functools.partial(forward, **named), *inputs)


class RunningStatistics:
    """The buffers that batch norms move in a forward, as they are now."""

    def __init__(self, network: nn.Module):
        self.norms = [
            module
            for module in network.modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
        ]

    def __call__(self) -> list[Tensor]:
        return [buffer for norm in self.norms for buffer in norm.buffers(recurse=False)]
