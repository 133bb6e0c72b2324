"""Feature Distillation with a Swin V2 student and a Swin teacher: outputs, gradients, and steps of
training, by every implementation that runs."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import eva_fast
from eva_fast import native
from eva_fast.model import SwinSizes, SwinV2
from eva_fast.model.distilled import Distilled
from eva_fast.ops import set_kernels
from eva_fast.ops.smooth_l1 import smooth_l1
from eva_fast.train import decay_groups, make_optimizer
from tests.golden import Check, largest, read, relative, worst

SIZES = ("img_size", "patch_size", "embed_dim", "depths", "num_heads", "window_size")


def check(path: Path) -> Iterator[Check]:
    tensors, meta = read(path)
    yield from _teacher(path, tensors, meta)
    for kernels in ("torch", "native") if native.available() else ("torch",):
        set_kernels(kernels)
        try:
            for row in (*outputs(tensors, meta, kernels), *_steps(tensors, meta, kernels)):
                yield row._replace(what=f"{kernels}: {row.what}")
        finally:
            set_kernels("auto")
    _, spared = decay_groups(network(tensors, meta, "torch"))
    yield Check("names in no_decay", float(len(set(spared) ^ set(json.loads(meta["no_decay"])))), 0)


def network(tensors: dict, meta: dict, kernels: str) -> Distilled:
    """The file's student and projector with their parameters."""
    found = {name: json.loads(meta[name]) for name in SIZES}
    sizes = SwinSizes(**{k: tuple(v) if isinstance(v, list) else v for k, v in found.items()})
    model = Distilled(SwinV2(sizes, kernels=kernels), int(meta["teacher_dim"]))
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("param.")})
    return model


def _teacher(path: Path, t: dict, meta: dict) -> Iterator[Check]:
    teacher = eva_fast.load_teacher(path)
    images = as_teachers_take(t["image"])
    features = teacher(images)
    yield Check("teacher's features", relative(features, t["teacher_features"]), 2e-5)
    eps = float(meta["target_ln_eps"])
    target = F.layer_norm(features, features.shape[-1:], eps=eps)
    yield Check("target", relative(target, t["target"]), 2e-5)


def as_teachers_take(images: Tensor) -> Tensor:
    """Images normalised as for ImageNet, as floats for teachers, which are normalised as for CLIP."""
    from eva_fast.layers.inputs import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD

    clip_mean, clip_std, mean, std = (
        torch.tensor(v, dtype=torch.float64)[:, None, None]
        for v in (CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD)
    )
    return ((images.double() * std + mean - clip_mean) / clip_std).float()


def outputs(t: dict, meta: dict, kernels: str) -> Iterator[Check]:
    model = network(t, meta, kernels)
    images = t["image"]
    features = model.encoder.forward_features(images)
    yield Check("features", relative(features, t["features"]), 2e-5)
    yield Check("prediction", relative(model(images), t["prediction"]), 2e-5)
    loss = smooth_l1(model(images), t["teacher_features"], float(meta["smooth_l1_beta"]))
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
        loss = smooth_l1(model(t["image"]), t["teacher_features"], float(meta["smooth_l1_beta"]))
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
