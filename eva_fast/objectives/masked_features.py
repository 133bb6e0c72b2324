"""What objectives share that regress a teacher's features of masked patches by their cosine."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eva_fast.layers import Stream
from eva_fast.model import head
from eva_fast.objectives.base import Objective
from eva_fast.objectives.request import Request
from eva_fast.objectives.setting import Setting
from eva_fast.ops import choose


class MaskedFeatures(Objective):
    """The teacher's masked rows as the target, minus the mean cosine as the loss."""

    perfect = -1.0

    def request(self, setting: Setting) -> Request | None:
        return Request(
            rows="masked", norm_after="calibrated" if setting.config.teacher.whiten else "none"
        )

    def averaged(self, target: Tensor) -> Tensor:
        """Unit vectors: their mean is the direction with the best mean cosine, so that no constant
        does better."""
        return F.normalize(target.float(), dim=1)

    def constant_loss(self, constant: Tensor, rows: Tensor) -> Tensor:
        return -(rows @ F.normalize(constant, dim=0)).mean()


def head_alternatives(
    projection: nn.Linear, norm: nn.LayerNorm, dtype: torch.dtype, target: Tensor
) -> dict[str, dict[str, Callable[[], Any]]]:
    """`Objective.alternatives` of a head with EVA's loss: composed and fused, where there is a fused
    one. target: [M, C]; dtype: of the rows that reach the head."""
    device = target.device
    if not choose.can_run(head.OP, "triton", device.type):
        return {}
    x = torch.randn(len(target), 1, projection.in_features, dtype=dtype, device=device)
    branch, bias = torch.randn_like(x), torch.randn_like(projection.weight[0])
    stream = Stream(*(t.requires_grad_() for t in (x, branch, bias)))

    def run(loss: Callable[..., Tensor]) -> None:
        loss(projection, stream, norm, target).backward()

    return {
        head.OP: {
            "torch": functools.partial(run, head.composed_loss),
            "triton": functools.partial(run, head.fused_loss),
        }
    }
