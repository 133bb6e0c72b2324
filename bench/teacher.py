"""The frozen teacher: features of the masked patches from a CLIP image tower, no gradient."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.harness import Case, Variant
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.layers.inputs import normalise
from eva_fast.teachers.clip import ClipConfig, ClipTeacher, ClipTower

MODES = ("forward",)


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

    def __init__(self, config: ClipConfig):
        super().__init__()
        width = config.width
        tokens = 1 + config.grid[0] * config.grid[1]
        self.conv1 = nn.Conv2d(3, width, config.patch_size, config.patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty(tokens, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.ModuleDict(
            {
                "resblocks": nn.ModuleList(
                    PlainBlock(width, config.heads, config.mlp_hidden) for _ in range(config.layers)
                )
            }
        )
        self.proj = nn.Parameter(torch.empty(width, config.dim or width))

    @torch.no_grad()
    def forward(self, images: Tensor, mask: Tensor) -> Tensor:
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1)
        x = self.ln_pre(x + self.positional_embedding)
        for block in self.transformer["resblocks"]:
            x = block(x)
        return (self.ln_post(x) @ self.proj)[:, 1:][mask].float()


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    """A tower of the student's width and depth; ViT-L/14, EVA-01's teacher, where that is given."""
    sizes = shape.sizes
    config = ClipConfig(
        width=sizes.embed_dim,
        layers=sizes.depth,
        heads=sizes.num_heads,
        mlp_hidden=sizes.mlp_hidden,
        patch_size=sizes.patch_size,
        grid=sizes.grid,
        dim=sizes.predict_dim,
    )
    torch.manual_seed(0)
    tower = ClipTower(config, sizes.grid)
    for p in tower.parameters():
        nn.init.normal_(p, std=0.03 if p.ndim > 1 else 0.3)
    state = tower.state_dict()
    plain = PlainTower(config)
    plain.load_state_dict(state)
    plain.to(shape.device, shape.dtype).eval()
    teacher = ClipTeacher("bench", config, state)
    teacher = teacher.freeze(shape.device, shape.dtype)
    raw, indices, where = shape.images(), shape.mask(), shape.bool_mask()
    images = normalise(raw, shape.dtype)
    kit.add("reference", lambda: plain(images, where))
    kit.add("tuned", lambda: _tuned(teacher, images, where))
    kit.add("eva_fast", lambda: teacher(raw, indices))
    kit.add_compiled()
    variants = {
        name: Variant(call, lambda call=call: [F.normalize(call(), dim=-1)])
        for name, call in kit.functions.items()
    }
    return Case(
        subject="teacher",
        mode=mode,
        shape=shape.label,
        device=shape.device,
        variants=variants,
        missing=kit.missing,
        tolerance=1e-4 if shape.dtype == torch.float32 else 3e-2,
        batch=shape.batch,
    )


@torch.no_grad()
def _tuned(teacher: ClipTeacher, images: Tensor, where: Tensor) -> Tensor:
    """All patches through PyTorch's fused attention, then the masked ones."""
    return teacher.tower(images)[where].float()
