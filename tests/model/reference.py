"""EVA's student with all that the official options add, written out in float64: every token through
every block, attention by its matrices, the bias of a pair of tokens by where they stand."""

import torch
import torch.nn.functional as F

STATISTICS = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def predictions(p, images, mask, *, patch, heads, depth, normalize="clip", patch_embed_grad=1.0):
    """[M, C] of parameters {name: float64}, uint8 images [B,3,H,W] and a mask bool [B,N]."""
    mean, std = (torch.tensor(v).double().view(3, 1, 1) for v in STATISTICS[normalize])
    x = (images.double() / 255 - mean) / std
    x = F.conv2d(x, p["patch_embed.proj.weight"], p["patch_embed.proj.bias"], patch)
    grid = x.shape[2:]
    x = x.flatten(2).mT
    x = x.detach() * (1 - patch_embed_grad) + x * patch_embed_grad
    x = torch.where(mask[..., None], p["mask_token"], x)
    x = torch.cat([p["cls_token"].expand(len(x), -1, -1), x], 1) + p["pos_embed"]
    bias = pair_bias(p, grid)
    for i in range(depth):
        w = {
            k.removeprefix(f"blocks.{i}."): v for k, v in p.items() if k.startswith(f"blocks.{i}.")
        }
        x = x + w.get("gamma_1", 1) * attention(x, w, heads, bias)
        y = F.layer_norm(x, x.shape[-1:], w["norm2.weight"], w["norm2.bias"], 1e-6)
        y = y @ w["mlp.fc1.weight"].T + w["mlp.fc1.bias"]
        y = y * (1 + torch.erf(y / 2**0.5)) / 2
        x = x + w.get("gamma_2", 1) * (y @ w["mlp.fc2.weight"].T + w["mlp.fc2.bias"])
    x = F.layer_norm(x, x.shape[-1:], p["norm.weight"], p["norm.bias"], 1e-6)
    return x[:, 1:][mask] @ p["lm_head.weight"].T + p["lm_head.bias"]


def attention(x, w, heads, bias):
    y = F.layer_norm(x, x.shape[-1:], w["norm1.weight"], w["norm1.bias"], 1e-6)
    q, k, v = (y @ w["attn.qkv.weight"].T).chunk(3, -1)
    q, v = q + w["attn.q_bias"], v + w["attn.v_bias"]
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
    scores = (q @ k.mT / q.shape[-1] ** 0.5 + bias).softmax(-1)
    return (scores @ v).transpose(1, 2).flatten(2) @ w["attn.proj.weight"].T + w["attn.proj.bias"]


def pair_bias(p, grid):
    """[H, T, T], or 0 without a table. Tokens are CLS and the patches row by row."""
    name = "rel_pos_bias.relative_position_bias_"
    shared = p.get(f"{name}table")
    down, across = p.get(f"{name}for_high"), p.get(f"{name}for_width")
    if shared is None and down is None:
        return 0
    height, width = grid
    places = [None, *((y, x) for y in range(height) for x in range(width))]

    def row(asking, asked):
        if shared is not None:
            special = (2 * height - 1) * (2 * width - 1)
        if asking is None or asked is None:
            which = 2 if asking is asked else 0 if asking is None else 1
            if shared is not None:
                return shared[special + which]
            return down[2 * height - 1 + which] + across[2 * width - 1 + which]
        dy, dx = asked[0] - asking[0], asked[1] - asking[1]
        if shared is not None:
            return shared[(height - 1 - dy) * (2 * width - 1) + width - 1 - dx]
        return down[dy + height - 1] + across[dx + width - 1]

    rows = [torch.stack([row(i, j) for j in places]) for i in places]
    return torch.stack(rows).permute(2, 0, 1)
