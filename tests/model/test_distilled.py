"""Feature Distillation's students and projector: on other sizes than the golden files', against timm's
modules in float64 over whole steps; and the files by the kernels that are interpreted."""

import pytest
import torch
from torch import nn

from bench.objectives import swin
from bench.objectives.fd import TimmDistilled, timm_beit
from bench.objectives.pair import same_name
from eva_fast.model import BeitViT, ModelSizes, SwinSizes, SwinV2
from eva_fast.model.distilled import Distilled
from eva_fast.ops import registry, set_kernels
from eva_fast.train import decay_groups
from tests.golden import FOLDER, fd, fd_swin, fd_vit, read

WIDTH = 20
META = {
    "smooth_l1_beta": "2.0", "betas": "0.9,0.999", "eps": "1e-8", "weight_decay": "0.05",
    "clip_grad": "0.05",
}  # fmt: skip
RATES = torch.linspace(1e-4, 1e-3, 5)
VIT = ModelSizes(
    img_size=60, patch_size=12, embed_dim=72, depth=3, num_heads=3, mlp_hidden=144, predict_dim=1
)
SWIN = SwinSizes(
    img_size=96, patch_size=4, embed_dim=12, depths=(1, 2, 3), num_heads=(3, 2, 4), window_size=6
)


def vit(kernels="torch"):
    return Distilled(BeitViT(VIT, kernels=kernels), WIDTH)


def swin_v2(kernels="torch"):
    return Distilled(SwinV2(SWIN, kernels=kernels), WIDTH)


KINDS = {
    "ViT": (vit, lambda: timm_beit(VIT), same_name),
    "Swin": (swin_v2, lambda: swin.timm_swin(SWIN), swin.renamed),
}


def as_file(ours, encoder, renamed):
    """What a golden file has, by timm's modules, PyTorch's AdamW and clipping in float64."""
    theirs = TimmDistilled(encoder, WIDTH)
    theirs.load_state_dict({renamed(n): p for n, p in ours.state_dict().items()})
    theirs.double()
    images = torch.randn(3, 3, ours.encoder.sizes.img_size, ours.encoder.sizes.img_size)
    t = {"image": images}
    wide, named = images.double(), dict(theirs.named_parameters())
    names = {n: named[renamed(n)] for n, _ in ours.named_parameters()}
    t["features"] = theirs.encoder.forward_features(wide).flatten(1, -2)
    t["prediction"] = theirs(wide)
    t["teacher_features"] = torch.randn(t["prediction"].shape) * 2
    target = t["teacher_features"].double()
    groups = [
        {"params": [names[n] for n in group], "weight_decay": decay}
        for group, decay in zip(decay_groups(ours), (0.05, 0.0))
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)
    losses, norms = [], []
    for rate in RATES.tolist():
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = theirs.loss(wide, target)
        loss.backward()
        if not losses:
            t["loss"] = loss.detach()
            t |= {f"grad.{n}": p.grad.clone() for n, p in names.items()}
        norms.append(nn.utils.clip_grad_norm_(theirs.parameters(), 0.05))
        optimizer.step()
        losses.append(loss.detach())
    t |= {f"after.{n}": p.detach() for n, p in names.items()}
    return t | {"lr": RATES, "losses": torch.stack(losses), "grad_norms": torch.stack(norms)}


@pytest.mark.skipif(registry.interpreted(), reason="the golden files are, below")
@pytest.mark.parametrize("kind", KINDS)
def test_other_sizes_against_timms_modules_in_float64(kind):
    make, encoder, renamed = KINDS[kind]
    torch.manual_seed(0)
    ours = make()
    with torch.no_grad():
        for name, p in ours.named_parameters():
            p.add_(torch.randn_like(p) * (0.3 if "norm" in name else 0.1))
    t = as_file(ours, encoder(), renamed)
    assert t["grad_norms"].min() > 0.05  # all steps are clipped
    for kernels in ("torch", "native"):
        set_kernels(kernels)
        try:
            for rows in (fd.features, fd.outputs, fd.steps):
                model = make(kernels)
                model.load_state_dict(ours.state_dict())
                found = list(rows(t, META, model))
                assert found and not [row for row in found if not row.ok], kernels
        finally:
            set_kernels("auto")


@pytest.mark.interpreted
@pytest.mark.skipif(not registry.interpreted(), reason="for the process that interprets Triton")
@pytest.mark.parametrize("kind", [fd_vit, fd_swin], ids=["ViT", "Swin"])
def test_golden_pass_by_the_interpreted_kernels(kind):
    """Without the file's steps, which take minutes there and run no other kernels."""
    file = f"{kind.__name__.rpartition('.')[2]}_micro.safetensors"
    tensors, meta = read(FOLDER / file)
    set_kernels("triton")
    try:
        found = list(fd.outputs(tensors, meta, kind.network(tensors, meta, "triton")))
    finally:
        set_kernels("auto")
    assert found and not [row for row in found if not row.ok]
