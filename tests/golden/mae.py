"""MAE's network with features or pixels as targets: outputs, gradients, and steps of training, by every
implementation that runs. The loss is minus the mean cosine: the published code's sign is a slip."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from eva_fast import native
from eva_fast.model import DecoderSizes, MaskedAutoencoder, ModelSizes
from eva_fast.objectives.pixels import pixel_loss, pixel_targets
from eva_fast.ops import set_kernels
from eva_fast.train import decay_groups
from tests.golden import Check, largest, read, relative
from tests.golden.training import apart, train, worst_of

SIZES = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_hidden", "predict_dim")


def check(path: Path) -> Iterator[Check]:
    tensors, meta = read(path)
    for kernels in ("torch", "native") if native.available() else ("torch",):
        set_kernels(kernels)
        try:
            for row in (*outputs(tensors, meta, kernels), *_steps(tensors, meta, kernels)):
                yield row._replace(what=f"{kernels}: {row.what}")
        finally:
            set_kernels("auto")
    yield from _groups(tensors, meta)
    if "pixel.prediction" in tensors:
        yield from _pixels(tensors, meta)


def network(tensors: dict, meta: dict, kernels: str) -> MaskedAutoencoder:
    """The file's network with its parameters and position tables."""
    model = MaskedAutoencoder(
        ModelSizes(**{k: int(meta[k]) for k in SIZES}),
        DecoderSizes(**{k: int(meta[f"decoder_{k}"]) for k in ("dim", "depth", "heads")}),
        kernels=kernels,
    )
    model.load_official({k[6:]: v for k, v in tensors.items() if k.startswith("param.")})
    return model


def batch(t: dict) -> tuple[torch.Tensor, ...]:
    """(images, visible, dropped, target rows of the dropped) of the file."""
    dropped = t["mask"].nonzero()[:, 1].view(len(t["mask"]), -1).int()
    return t["image"], t["ids_keep"].int(), dropped, t["target"][t["mask"]]


def outputs(t: dict, meta: dict, kernels: str, whole: bool = True) -> Iterator[Check]:
    """whole: also what no step of training computes."""
    model = network(t, meta, kernels)
    images, visible, dropped, target = batch(t)
    if whole:
        features = model.encoder.forward_features(images, visible)
        yield Check("features", relative(features, t["latent"]), 2e-5)
        yield Check("prediction", relative(model(images, visible), t["prediction"]), 2e-5)
    wanted = t["prediction"][t["mask"]]
    yield Check("its dropped rows", relative(model(images, visible, dropped), wanted), 2e-5)
    loss = model.loss(images, visible, dropped, target)
    yield Check("loss", largest(loss, t["loss"]), 2e-6)
    yield Check("minus the official loss", largest(-loss, t["loss_official_sign"]), 2e-6)
    loss.backward()
    names = model.official_names()
    gradients = {names[n]: p.grad for n, p in model.named_parameters()}
    yield worst_of("gradients", gradients, t, "grad.", 2e-4)
    fresh = MaskedAutoencoder(model.sizes, DecoderSizes(dim=model.mask_token.shape[-1], heads=1))
    for table in ("encoder.pos_embed", "decoder_pos_embed"):
        own = fresh.get_buffer(table)
        yield Check(table, largest(own, t[f"param.{names[table]}"]), 1e-6)


def _steps(t: dict, meta: dict, kernels: str) -> Iterator[Check]:
    model = network(t, meta, kernels)
    names = model.official_names()
    found = train(model, t["lr"], meta, lambda: model.loss(*batch(t)))
    yield Check(f"losses of {len(found.losses)} steps", largest(found.losses, t["losses"]), 1e-4)
    # of the first step alone: along the way rounding moves the norms by 4e-4, in the file's own too
    first = apart(found.norms[:1], t["grad_norms"][:1])
    yield Check("first gradient norm (relative)", first, 2e-5)
    after = {names[n]: p for n, p in model.named_parameters()}
    yield worst_of("parameters after them", after, t, "after.", 2e-4)


def _groups(t: dict, meta: dict) -> Iterator[Check]:
    model = network(t, meta, "torch")
    names = model.official_names()
    decayed, spared = ({names[n] for n in group} for group in decay_groups(model))
    yield Check("names in no_decay", float(len(spared ^ set(json.loads(meta["no_decay"])))), 0)
    trained = {k[5:] for k in t if k.startswith("grad.")}
    yield Check("names that train", float(len((decayed | spared) ^ trained)), 0)


def _pixels(t: dict, meta: dict) -> Iterator[Check]:
    """Both pixel losses and their gradients for a given prediction."""
    patch, mask = int(meta["patch_size"]), t["mask"]
    every = torch.arange(mask.shape[1]).expand(len(mask), -1).int()
    plain = pixel_targets(t["image"], every, patch, norm_pix=False)
    yield Check("pixels as targets", largest(plain, t["pixel.target_plain"]), 1e-6)
    _, _, dropped, _ = batch(t)
    for kind, norm_pix in (("plain", False), ("normalised", True)):
        prediction = t["pixel.prediction"].clone().requires_grad_()
        target = pixel_targets(t["image"], dropped, patch, norm_pix=norm_pix)
        loss = pixel_loss(prediction[mask], target)
        loss.backward()
        yield Check(f"{kind} pixel loss", largest(loss, t[f"pixel.loss_{kind}"]), 2e-6)
        error = relative(prediction.grad, t[f"pixel.grad_{kind}"])
        yield Check(f"{kind} pixel gradient", error, 2e-4)
