"""Drop-path of other libraries' networks by factors that are drawn before the forward.

So a block that is computed again for its backward drops what it dropped, without a random state that
is kept and set back; and all processes of a run draw for the whole batch, so that it does not depend on
how many they are.
"""

import torch
from torch import Tensor, nn

from eva_fast.layers.stream import drop_path_scale


class DrawnDropPath(nn.Module):
    """x times the sample's factor, 0 with probability `rate`, else 1/(1-rate); nothing in evaluation."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self._factor: Tensor | None = None

    def draw(self, images: Tensor) -> None:
        """New factors for the samples of a batch, [B,...]."""
        self._factor = drop_path_scale(self.rate, self.training, images)

    def forward(self, x: Tensor) -> Tensor:
        if self._factor is None or not self.training:
            return x
        return x * self._factor.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


def replace_drop_paths(
    network: nn.Module, kind: type[nn.Module], rate_of: str
) -> list[DrawnDropPath]:
    """Puts a `DrawnDropPath` in the place of every module of that kind, of the rate that its attribute
    `rate_of` says, and returns them in the network's order. They have no parameters."""
    found: list[DrawnDropPath] = []
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, kind):
                drawn = DrawnDropPath(float(getattr(child, rate_of)))
                setattr(parent, name, drawn)
                found.append(drawn)
    return found


def draw_all(paths: list[DrawnDropPath], images: Tensor) -> None:
    """New factors of every one, without gradients."""
    with torch.no_grad():
        for path in paths:
            path.draw(images)
