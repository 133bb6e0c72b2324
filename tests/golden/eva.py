"""EVA-01's student: outputs, gradients, and steps of training, by every implementation that runs.

`NAME.param_groups.json` beside `NAME.safetensors` says which parameters decay.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch

import eva_fast
from eva_fast import native
from eva_fast.ops import set_kernels
from eva_fast.train import decay_groups, make_optimizer
from tests.golden import Check, largest, read, relative, worst

SIZES = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_hidden", "predict_dim")
GROUPS = ".param_groups.json"


def check(path: Path) -> Iterator[Check]:
    if path.name.endswith(GROUPS):
        yield from _groups(path)
        return
    tensors, meta = read(path)
    for kernels in ("torch", "native") if native.available() else ("torch",):
        set_kernels(kernels)
        try:
            for row in _outputs(tensors, meta, kernels):
                yield row._replace(what=f"{kernels}: {row.what}")
        finally:
            set_kernels("auto")


def student(tensors: dict, meta: dict, kernels: str):
    """The file's model with its parameters."""
    model = eva_fast.create_model(**{k: int(meta[k]) for k in SIZES}, kernels=kernels)
    model.load_official({k[6:]: v for k, v in tensors.items() if k.startswith("param.")})
    return model


def _outputs(t: dict, meta: dict, kernels: str) -> Iterator[Check]:
    model = student(t, meta, kernels)
    yield Check(
        "features", largest(model.forward_features(t["image"], t["mask"]), t["features"]), 1e-5
    )
    yield Check("prediction", largest(model(t["image"], t["mask"]), t["prediction"]), 1e-5)
    loss = model.loss(t["image"], t["mask"], t["target"])
    yield Check("loss", largest(loss, t["loss"]), 1e-5)
    loss.backward()
    errors = {n: relative(p.grad, t[f"grad.{n}"]) for n, p in model.named_parameters()}
    name, error = worst(errors)
    yield Check(f"gradients (worst: {name})", error, 1e-4)
    yield from _steps(t, meta, model)


def _steps(t: dict, meta: dict, model) -> Iterator[Check]:
    """AdamW on the one batch with the file's learning rates, the norm clipped."""
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
        loss = model.loss(t["image"], t["mask"], t["target"])
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        optimizer.step(grad_scale=(clip / (norm + 1e-6)).clamp_max(1.0))
        losses.append(loss.detach())
        norms.append(norm)
    yield Check(f"losses of {len(losses)} steps", largest(torch.stack(losses), t["losses"]), 1e-4)
    norms_off = (torch.stack(norms) / t["grad_norms"] - 1).abs().max().item()
    yield Check("gradient norms (relative)", norms_off, 1e-4)
    name, error = worst({n: largest(p, t[f"after.{n}"]) for n, p in model.named_parameters()})
    yield Check(f"parameters after them (worst: {name})", error, 1e-4)


def _groups(path: Path) -> Iterator[Check]:
    tensors, meta = read(path.with_name(path.name.removesuffix(GROUPS) + ".safetensors"))
    official = json.loads(path.read_text())
    found = decay_groups(student(tensors, meta, "torch"))
    for name, names in zip(("decay", "no_decay"), found):
        yield Check(f"names in {name} that differ", float(len(set(names) ^ set(official[name]))), 0)
