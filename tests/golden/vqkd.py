"""VQ-KD's tokenizer: outputs, gradients, the codebook's update, steps of training, and k-means, and the
student that predicts its codes, by every implementation that runs."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from eva_fast import native
from eva_fast.layers.inputs import CLIP_MEAN, CLIP_STD
from eva_fast.model import ModelSizes
from eva_fast.model.quantiser import kmeans
from eva_fast.model.vqkd import VqKd, VqKdSizes
from eva_fast.objectives.vqkd import tokenizer_loss
from eva_fast.ops import set_kernels
from eva_fast.ops.registry import interpreted
from eva_fast.teachers.clip import ClipTeacher
from eva_fast.teachers.clip_file import read_clip
from eva_fast.train import decay_groups
from eva_fast.weights import Weights
from tests.golden import Check, largest, read, relative, tokens
from tests.golden.training import apart, train, worst_of

MARGIN = 1e-4
"""Codes whose product leads by more than this are equal whatever the rounding."""


def check(path: Path) -> Iterator[Check]:
    tensors, meta = read(path)
    own = ("torch", "native") if native.available() else ("torch",)
    for kernels in ("triton",) if interpreted() else own:
        set_kernels(kernels)
        try:
            for row in _rows(tensors, meta, kernels):
                yield row._replace(what=f"{kernels}: {row.what}")
        finally:
            set_kernels("auto")


def sizes_of(meta: dict[str, str]) -> VqKdSizes:
    width = int(meta["embed_dim"])
    student = ModelSizes(
        **{k: int(meta[k]) for k in ("img_size", "patch_size", "embed_dim", "depth", "num_heads")},
        mlp_hidden=4 * width, predict_dim=int(meta["teacher_out"]),
    )  # fmt: skip
    return VqKdSizes(
        student=student, codes=int(meta["codes"]), code_dim=int(meta["code_dim"]),
        decoder_depth=int(meta["decoder_depth"]),
    )  # fmt: skip


def tokenizer(t: dict, meta: dict[str, str], kernels: str) -> VqKd:
    """The file's model with its parameters and codebook."""
    model = VqKd(sizes_of(meta), kernels=kernels)
    model.load_state_dict({k[6:]: v for k, v in t.items() if k.startswith("param.")})
    return model


def _rows(t: dict, meta: dict[str, str], kernels: str) -> Iterator[Check]:
    yield from _target(t, meta)
    model, images = tokenizer(t, meta, kernels), 2 * t["image"] - 1
    yield _codes("codes", model.codes(images), t["indices_before"], t["index_margin"])
    z, quantised, index, reconstruction = model(images)
    yield Check("to quantise", relative(z, F.normalize(t["to_quantize"], dim=-1)), 2e-5)
    yield _codes("codes in training", index, t["indices"], t["index_margin"])
    official = t["quantized"].flatten(2).mT.flatten(0, 1)
    yield Check("quantised", relative(quantised, official), 2e-5)
    yield Check("reconstruction", relative(reconstruction, t["reconstruction"]), 2e-5)
    loss, parts = tokenizer_loss(z, quantised, reconstruction, t["target"].flatten(0, 1))
    for name, value in (("loss", loss), ("rec_loss", parts[0]), ("quant_loss", parts[1])):
        yield Check(name, relative(value, t[name]), 2e-6)
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters()}
    yield worst_of("gradients", gradients, t, "grad.", 2e-4)
    spared = set(json.loads(meta["no_decay"])) ^ set(decay_groups(model)[1])
    yield Check("names without decay that differ", float(len(spared)), 0)
    applied = torch.tensor(True)
    model.quantize.update(applied)
    yield Check("codebook", largest(model.quantize.embedding.weight, t["codebook_after"]), 1e-6)
    yield Check("cluster size", largest(model.quantize.cluster_size, t["cluster_size_after"]), 1e-6)
    yield _codes("codes after", model.codes(images), t["indices_after"], t["index_margin"])
    yield from _steps(t, meta, model, images)
    yield from _kmeans(t)
    yield from tokens.rows(t, meta, kernels, model.eval().codes(images))


def _target(t: dict, meta: dict[str, str]) -> Iterator[Check]:
    """The CLIP teacher's features, of the same pixels with its own normalisation."""
    names = [name for name in t if name.startswith("teacher.")]
    tensors = {name.removeprefix("teacher."): partial(t.get, name) for name in names}
    weights = Weights(Path("teacher"), "safetensors", tensors)
    config, state = read_clip(weights, {"heads": int(meta["teacher_heads"])})
    teacher = ClipTeacher("clip", config, state, None, False).freeze("cpu", torch.float32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    found = teacher((t["image"] - mean) / std)
    yield Check("target", relative(found, t["target"]), 2e-5)


def _codes(what: str, found: torch.Tensor, official: torch.Tensor, margin: torch.Tensor) -> Check:
    certain = margin.flatten() > MARGIN
    off = (found.flatten() != official.flatten()) & certain
    return Check(f"{what} that differ, of {int(certain.sum())}", float(off.sum()), 0)


def _steps(t: dict, meta: dict[str, str], model: VqKd, images: torch.Tensor) -> Iterator[Check]:
    books = []

    def loss() -> torch.Tensor:
        z, quantised, _, reconstruction = model(images)
        return tokenizer_loss(z, quantised, reconstruction, t["target"].flatten(0, 1))[0]

    def after_step() -> None:
        model.quantize.update(torch.tensor(True))
        books.append(model.quantize.embedding.weight.clone())

    found = train(model, t["lr"], meta, loss, after_step)
    yield Check(f"losses of {len(found.losses)} steps", apart(found.losses, t["losses"]), 5e-6)
    yield Check("gradient norms", apart(found.norms, t["grad_norms"]), 2e-4)
    yield Check("codebook along them", largest(torch.stack(books), t["codebook_steps"]), 1e-6)
    yield worst_of("parameters after them", dict(model.named_parameters()), t, "after.", 2e-5)


def _kmeans(t: dict) -> Iterator[Check]:
    means, counts = kmeans(t["kmeans.samples"], t["kmeans.first"])
    yield Check("k-means", largest(means, t["kmeans.means"]), 1e-6)
    yield Check("k-means counts", largest(counts, t["kmeans.bins"]), 0)
