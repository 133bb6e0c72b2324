"""The whole training step: forward, backward, clipping and AdamW, from the loader's batch."""

import torch

from bench.harness import Case, Variant
from bench.kit import Kit
from bench.official import official_code
from bench.shapes import Shape
from eva_fast.baselines import training as plain
from eva_fast.layers import keep_copies
from eva_fast.layers.inputs import normalise
from eva_fast.model import EvaViT
from eva_fast.ops import FusedAdamW, gradient_scale

MODES = ("step",)
OFFICIAL_CODE = "official code"


def fused_step(model, optimizer, images, mask, target):
    """One step as the training loop runs it, without its guard and metrics."""
    loss = model.loss(images, mask, target)
    loss.backward()
    grads = [p.grad for p in model.parameters()]
    norm, scale = gradient_scale(grads, plain.CLIP_NORM)
    optimizer.step(grad_scale=scale)
    optimizer.zero_grad(set_to_none=True)
    return loss.detach(), norm


def fused_optimizer(model: EvaViT, dtype: torch.dtype) -> FusedAdamW:
    """One pass over float32 masters, which also writes the copies that 16-bit GEMMs read."""
    copies = keep_copies(model, dtype)
    groups = plain.parameter_groups(model)
    return FusedAdamW(groups, lr=1e-3, betas=plain.BETAS, eps=plain.EPS, copies=copies)


def _state(shape: Shape) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return EvaViT(shape.sizes).state_dict()


def _compile(model: plain.OfficialViT, kit: Kit) -> None:
    """Compiles the official forward; its boolean gather stays outside the graph."""
    backend = "inductor" if kit.timed else "eager"
    torch._dynamo.reset()
    model.forward_features = torch.compile(model.forward_features, backend=backend, dynamic=False)


def _plain_class(name: str, kit: Kit) -> type:
    if name == OFFICIAL_CODE:
        return official_code(kit.official)
    return plain.TunedViT if name == "tuned" else plain.OfficialViT


def make(
    name: str, shape: Shape, kit: Kit, state: dict[str, torch.Tensor] | None = None
) -> Variant:
    """One variant: a model, its optimiser and a batch. The plain variants get normalised images,
    as a loader hands them over; eva_fast gets bytes."""
    raw, indices, mask = shape.images(), shape.mask(), shape.bool_mask()
    target = shape.randn(shape.batch * shape.masked, shape.sizes.predict_dim, seed=9)
    if name == "eva_fast":
        ours = EvaViT(shape.sizes, compute_dtype=shape.dtype, kernels="auto")
        ours.load_state_dict(state or ours.state_dict())
        ours.to(shape.device)
        optimizer = fused_optimizer(ours, shape.dtype)
        return _variant(
            ours,
            lambda: fused_step(ours, optimizer, raw, indices, target),
            lambda: ours.loss(raw, indices, target),
        )
    model = _plain_class(name, kit)(shape.sizes)
    model.load_state_dict(state or model.state_dict())
    model.to(shape.device, shape.dtype)
    if name == "compile":
        _compile(model, kit)
    plain_optimizer, inputs = plain.make_optimizer(model), model.inputs(mask)
    images = normalise(raw, shape.dtype)
    return _variant(
        model,
        lambda: plain.train_step(model, plain_optimizer, images, inputs, target),
        lambda: model.loss(target, images, *inputs),
    )


def first_step(name: str, shape: Shape, kit: Kit) -> None:
    """Builds a variant and runs one step."""
    torch.manual_seed(0)
    make(name, shape, kit).call()


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    """Every variant starts from the same weights and sees one batch again and again."""
    state = _state(shape)
    names = ["reference", "tuned", "eva_fast"]
    if kit.official is not None:
        names.append(OFFICIAL_CODE)
    if kit.timed and kit.quick:
        kit.missing["compile"] = "not with --quick"
    else:
        names.append("compile")
    return Case(
        subject="step",
        mode=mode,
        shape=shape.label,
        device=shape.device,
        variants={name: make(name, shape, kit, state) for name in names},
        missing=kit.missing,
        tolerance=2e-4 if shape.dtype == torch.float32 else 5e-2,
        batch=shape.batch,
    )


def _variant(model, step, loss) -> Variant:
    """`step` is timed; compared are the loss, the gradients of three parameters far apart, and the
    norm of all, from the weights as they are before any step."""

    def values():
        model.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        named = dict(model.named_parameters())
        names = ("patch_embed.proj.weight", "blocks.0.attn.q_bias", "lm_head.weight")
        norm = torch.stack([p.grad.float().norm() for p in named.values()]).norm()
        found = [value.detach().float(), norm, *(named[n].grad.clone() for n in names)]
        model.zero_grad(set_to_none=True)
        return found

    return Variant(step, values)
