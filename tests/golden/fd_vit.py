"""Feature Distillation with a ViT student and a CLIP teacher: outputs, gradients, and steps of training,
by every implementation that runs."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import eva_fast
from eva_fast import native
from eva_fast.model import BeitViT, ModelSizes
from eva_fast.model.distilled import Distilled
from eva_fast.ops import set_kernels, smooth_l1
from eva_fast.ops.registry import interpreted
from eva_fast.train import decay_groups, make_optimizer
from tests.golden import Check, largest, read, relative, worst
from tests.golden.fd_swin import as_teachers_take

SIZES = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_hidden")
TEACHER = "teacher."


def check(path: Path) -> Iterator[Check]:
    tensors, meta = read(path)
    yield from _teacher(tensors, meta)
    own = ("torch", "native") if native.available() else ("torch",)
    for kernels in ("triton",) if interpreted() else own:
        set_kernels(kernels)
        try:
            for rows in (_features, outputs, _steps):
                for row in rows(tensors, meta, kernels):
                    yield row._replace(what=f"{kernels}: {row.what}")
        finally:
            set_kernels("auto")
    _, spared = decay_groups(network(tensors, meta, "torch"))
    yield Check("names in no_decay", float(len(set(spared) ^ set(json.loads(meta["no_decay"])))), 0)


def network(tensors: dict, meta: dict, kernels: str) -> Distilled:
    """The file's student and projector with their parameters."""
    sizes = ModelSizes(**{name: int(meta[name]) for name in SIZES})
    encoder = BeitViT(sizes, layer_scale=float(meta["layer_scale"]), kernels=kernels)
    model = Distilled(encoder, int(meta["teacher_dim"]))
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("param.")})
    return model


def _teacher(t: dict, meta: dict) -> Iterator[Check]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.safetensors"
        own = {k.removeprefix(TEACHER): v for k, v in t.items() if k.startswith(TEACHER)}
        save_file(own, path)
        teacher = eva_fast.load_teacher(path, point="norm", cls=True)
    features = teacher(as_teachers_take(t["image"]))
    yield Check("teacher's features", relative(features, t["teacher_features"]), 2e-5)
    target = F.layer_norm(features, features.shape[-1:], eps=float(meta["target_ln_eps"]))
    yield Check("target", relative(target, t["target"]), 2e-5)


def _loss(prediction: torch.Tensor, t: dict, meta: dict) -> torch.Tensor:
    return smooth_l1(prediction, t["teacher_features"], float(meta["smooth_l1_beta"]))


def _features(t: dict, meta: dict, kernels: str) -> Iterator[Check]:
    features = network(t, meta, kernels).encoder.forward_features(t["image"])
    yield Check("features", relative(features, t["features"]), 2e-5)


def outputs(t: dict, meta: dict, kernels: str) -> Iterator[Check]:
    """Prediction, loss and gradients of one pass."""
    model = network(t, meta, kernels)
    prediction = model(t["image"])
    yield Check("prediction", relative(prediction, t["prediction"]), 2e-5)
    loss = _loss(prediction, t, meta)
    yield Check("loss", largest(loss, t["loss"]), 2e-6)
    loss.backward()
    errors = {n: relative(p.grad, t[f"grad.{n}"]) for n, p in model.named_parameters()}
    name, error = worst(errors)
    yield Check(f"gradients (worst: {name})", error, 2e-4)


def _steps(t: dict, meta: dict, kernels: str) -> Iterator[Check]:
    """AdamW on the one batch with the file's learning rates, the norm clipped."""
    model = network(t, meta, kernels)
    betas = tuple(float(b) for b in meta["betas"].split(","))
    optimizer = make_optimizer(
        model, betas=betas, eps=float(meta["eps"]), weight_decay=float(meta["weight_decay"])
    )
    clip = float(meta["clip_grad"])
    losses, norms = [], []
    for rate in t["lr"].tolist():
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
        loss = _loss(model(t["image"]), t, meta)
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        optimizer.step(grad_scale=(clip / (norm + 1e-6)).clamp_max(1.0))
        losses.append(loss.detach())
        norms.append(norm)
    yield Check(f"losses of {len(losses)} steps", largest(torch.stack(losses), t["losses"]), 5e-6)
    norms_off = (torch.stack(norms) / t["grad_norms"] - 1).abs().max().item()
    yield Check("gradient norms (relative)", norms_off, 2e-4)
    errors = {n: relative(p, t[f"after.{n}"]) for n, p in model.named_parameters()}
    name, error = worst(errors)
    yield Check(f"parameters after them (worst: {name})", error, 2e-5)
