"""OpenAI's CLIP image tower in plain PyTorch, as EVA-01 uses it: what a teacher is timed against."""

import torch
from torch import Tensor, nn


class PlainBlock(nn.Module):
    """OpenAI's residual block: nn.MultiheadAttention and QuickGELU, every token."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, hidden), "c_proj": nn.Linear(hidden, width)}
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        h = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](h * torch.sigmoid(1.702 * h))


class PlainTower(nn.Module):
    """The tower over all tokens, then EVA's boolean pick of the masked ones."""

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        heads: int,
        mlp_hidden: int,
        patch_size: int,
        grid: tuple[int, int],
        dim: int,
    ):
        super().__init__()
        tokens = 1 + grid[0] * grid[1]
        self.conv1 = nn.Conv2d(3, width, patch_size, patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(tokens, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.ModuleDict(
            {
                "resblocks": nn.ModuleList(
                    PlainBlock(width, heads, mlp_hidden) for _ in range(layers)
                )
            }
        )
        self.proj = nn.Parameter(torch.empty(width, dim))

    @torch.no_grad()
    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)
        x = self.ln_pre(x + self.positional_embedding)
        for block in self.transformer.get_submodule("resblocks").children():
            x = block(x)
        return (self.ln_post(x) @ self.proj)[:, 1:][mask].float()
