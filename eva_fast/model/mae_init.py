"""MAE's initial values and position tables (facebookresearch/mae; the facts, own code)."""

import torch
from torch import Tensor, nn

STD = 0.02
BASE = 10_000


def position_table(grid: tuple[int, int], dim: int) -> Tensor:
    """Fixed positions [1, N + 1, dim], float32: zeros for CLS; of a patch, the first half of the
    channels tells its column, the second half its row, each as sin and then cos of
    p / 10000^(i / (dim / 4))."""
    rates = BASE ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    down, across = (
        torch.outer(torch.arange(n, dtype=torch.float64), rates) for n in grid
    )  # [n, dim / 4]
    rows, columns = (torch.cat((p.sin(), p.cos()), 1) for p in (down, across))
    height, width = grid
    table = torch.cat(
        (columns.expand(height, -1, -1), rows[:, None].expand(-1, width, -1)), dim=2
    ).flatten(0, 1)
    return torch.cat((table.new_zeros(1, dim), table))[None].float()


@torch.no_grad()
def init_weights(model: nn.Module) -> None:
    """Fills `model` from torch's global random state.

    Linears and the patch convolution, read as a Linear: xavier uniform, biases 0; the convolution's
    bias keeps PyTorch's default. Class and mask token: normal with std 0.02. LayerNorm 1 and 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.flatten(1))
    for name, parameter in model.named_parameters():
        if name.endswith(("cls_token", "mask_token")):
            nn.init.normal_(parameter, std=STD)
