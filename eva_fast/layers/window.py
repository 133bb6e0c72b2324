"""Windows on a square map of tokens: their order, what a shifted one may not see, distances inside.

Swin (Liu et al. 2021) attends in windows of w x w tokens; every other block moves them by half a
window down and to the right, around the border. A fused block has tokens window after window, which is
one gather of rows, so that a window is a row of a batch. Nothing here holds parameters. Tensors are
made on the CPU, whatever the default device is; `register_constants` brings them to a network's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eva_fast.errors import UsageError

CPU = "cpu"
UNSEEN = -100.0
"""What is added to the scores of tokens that only the border's wrapping brought into one window."""


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows of a map of `side` x `side` tokens, `size` tokens a side, moved by `shift`."""

    side: int
    size: int
    shift: int = 0

    @classmethod
    def fitting(cls, side: int, size: int, shifted: bool) -> "Windows":
        """Of `size`, or one window of the whole map, which has nowhere to move, where that is no
        larger. UsageError where windows do not fill the map."""
        if side <= size:
            return cls(side, side)
        if side % size:
            raise UsageError(
                f"windows of {size} do not fill a map of {side}x{side} tokens: its side must be at "
                "most the window's, or a multiple of it"
            )
        return cls(side, size, size // 2 if shifted else 0)

    @property
    def count(self) -> int:
        return (self.side // self.size) ** 2

    @property
    def area(self) -> int:
        """Tokens of a window."""
        return self.size**2

    def partition(self, rows: Tensor) -> Tensor:
        """[side, side, ...] -> [count, area, ...], in reading order; no shift."""
        across = self.side // self.size
        tiles = rows.view(across, self.size, across, self.size, *rows.shape[2:]).transpose(1, 2)
        return tiles.reshape(self.count, self.area, *rows.shape[2:])

    def order(self) -> Tensor:
        """The row-major number of the token at each place, window after window: int64 [side^2]."""
        numbers = torch.arange(self.side**2, device=CPU).view(self.side, self.side)
        moved = numbers.roll((-self.shift, -self.shift), (0, 1))
        return self.partition(moved).flatten()

    def mask(self) -> Tensor | None:
        """float32 [count, area, area], 0 or `UNSEEN`; None where nothing is shifted."""
        if self.shift == 0:
            return None
        edge = torch.zeros(self.side, dtype=torch.int64, device=CPU)
        edge[-self.size :] = 1
        edge[-self.shift :] = 2
        region = self.partition(3 * edge[:, None] + edge)
        apart = region[:, :, None] != region[:, None]
        return torch.zeros(apart.shape, device=CPU).masked_fill_(apart, UNSEEN)

    def relative_index(self) -> Tensor:
        """Row of a table of offsets for (asking, asked) token: int64 [area, area]."""
        place = torch.arange(self.size, device=CPU)
        y, x = (t.flatten() for t in torch.meshgrid(place, place, indexing="ij"))
        down, right = (t[:, None] - t[None] + self.size - 1 for t in (y, x))
        return down * (2 * self.size - 1) + right

    def log_offsets(self) -> Tensor:
        """The offsets (y, x) of a table's rows, sign(v) log2(|v|+1) / log2 8 of v = 8 offset/(size-1):
        float32 [(2 size - 1)^2, 2] (SwinV2, Liu et al. 2022, section 3.3, and its code)."""
        span = torch.arange(1 - self.size, self.size, dtype=torch.float32, device=CPU)
        v = 8 * (span / max(self.size - 1, 1))
        v = v.sign() * torch.log2(v.abs() + 1) / 3
        return torch.stack(torch.meshgrid(v, v, indexing="ij"), -1).flatten(0, 1)


def inverse(order: Tensor) -> Tensor:
    """Where each number stands in a permutation int64 [N]."""
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    return places


def squares(side: int) -> Tensor:
    """Row-major numbers of the tokens of each 2x2 square of a map, int64 [side^2 / 4, 4]: (even row,
    even column), (odd, even), (even, odd), (odd, odd)."""
    numbers = torch.arange(side**2, device=CPU).view(side // 2, 2, side // 2, 2)
    return numbers.permute(0, 2, 3, 1).reshape(-1, 4)


def register_constants(module: nn.Module, **tensors: Tensor | None) -> None:
    """Buffers that no file holds, on the device of the module's parameters; "meta" for who counts."""
    device = next((p.device for p in module.parameters()), None)
    for name, tensor in tensors.items():
        module.register_buffer(name, None if tensor is None else tensor.to(device), False)
