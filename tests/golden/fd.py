"""Feature Distillation, whatever its student: outputs, gradients, and steps of training, by every
implementation that runs."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eva_fast import native
from eva_fast.layers.inputs import CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD
from eva_fast.model.distilled import Distilled
from eva_fast.ops import set_kernels
from eva_fast.ops.registry import interpreted
from eva_fast.ops.smooth_l1 import smooth_l1
from eva_fast.train import decay_groups
from tests.golden import Check, largest, relative
from tests.golden.training import apart, train, worst_of

Network = Callable[[dict, dict, str], Distilled]
"""(tensors, metadata, kernels) of a file to its student and projector."""


def check(t: dict, meta: dict, network: Network, teacher: Any) -> Iterator[Check]:
    yield from _teacher(t, meta, teacher)
    own = ("torch", "native") if native.available() else ("torch",)
    for kernels in ("triton",) if interpreted() else own:
        set_kernels(kernels)
        try:
            for rows in (features, outputs, steps):
                for row in rows(t, meta, network(t, meta, kernels)):
                    yield row._replace(what=f"{kernels}: {row.what}")
        finally:
            set_kernels("auto")
    _, spared = decay_groups(network(t, meta, "torch"))
    yield Check("names in no_decay", float(len(set(spared) ^ set(json.loads(meta["no_decay"])))), 0)


def parameters(t: dict) -> dict[str, Tensor]:
    """The state dict of the file's student and projector."""
    return {k.removeprefix("param."): v for k, v in t.items() if k.startswith("param.")}


def features(t: dict, meta: dict, model: Distilled) -> Iterator[Check]:
    found = model.encoder.forward_features(t["image"])
    yield Check("features", relative(found, t["features"]), 2e-5)


def outputs(t: dict, meta: dict, model: Distilled) -> Iterator[Check]:
    """Prediction, loss and gradients of one pass."""
    prediction = model(t["image"])
    yield Check("prediction", relative(prediction, t["prediction"]), 2e-5)
    loss = smooth_l1(prediction, t["teacher_features"], float(meta["smooth_l1_beta"]))
    yield Check("loss", largest(loss, t["loss"]), 2e-6)
    loss.backward()
    yield worst_of(
        "gradients", {n: p.grad for n, p in model.named_parameters()}, t, "grad.", 2e-4
    )  # fmt: skip


def steps(t: dict, meta: dict, model: Distilled) -> Iterator[Check]:
    beta = float(meta["smooth_l1_beta"])
    found = train(
        model, t["lr"], meta, lambda: smooth_l1(model(t["image"]), t["teacher_features"], beta)
    )
    yield Check(f"losses of {len(found.losses)} steps", largest(found.losses, t["losses"]), 5e-6)
    yield Check("gradient norms (relative)", apart(found.norms, t["grad_norms"]), 2e-4)
    yield worst_of("parameters after them", dict(model.named_parameters()), t, "after.", 2e-5)


def _teacher(t: dict, meta: dict, teacher: Any) -> Iterator[Check]:
    found = teacher(_as_teachers_take(t["image"]))
    yield Check("teacher's features", relative(found, t["teacher_features"]), 2e-5)
    target = F.layer_norm(found, found.shape[-1:], eps=float(meta["target_ln_eps"]))
    yield Check("target", relative(target, t["target"]), 2e-5)


def _as_teachers_take(images: Tensor) -> Tensor:
    """Images normalised as for ImageNet, as floats for teachers, which are normalised as for CLIP."""
    clip_mean, clip_std, mean, std = (
        torch.tensor(v, dtype=torch.float64)[:, None, None]
        for v in (CLIP_MEAN, CLIP_STD, IMAGENET_MEAN, IMAGENET_STD)
    )
    return ((images.double() * std + mean - clip_mean) / clip_std).float()
