"""The whole training step: forward, backward, clipping and AdamW, from the loader's batch."""

from collections.abc import Callable

import torch

from bench.harness import Case, Variant
from bench.kit import Kit
from bench.official import official_code
from bench.shapes import Shape
from eva_fast.baselines import training as plain
from eva_fast.data import Batch
from eva_fast.layers import keep_copies
from eva_fast.layers.inputs import normalise
from eva_fast.model import EvaViT
from eva_fast.objectives.eva import Eva
from eva_fast.train import TrainState, TrainStep, make_optimizer
from eva_fast.train.guard import Guard
from eva_fast.train.step import Outcome
from eva_fast.train.sums import Sums

MODES = ("step",)
OFFICIAL_CODE = "official code"


def training_step(model: EvaViT, shape: Shape, target: torch.Tensor) -> Callable[[], Outcome]:
    """The step of a run, guard and sums for the log included, on one batch of bytes. The target
    stands for the teacher, which is timed by itself."""
    device, dtype = torch.device(shape.device), shape.dtype
    state = TrainState(
        module=model, teacher=None, loader=None, device=device, sums=Sums((), device),
        optimizer=make_optimizer(model, copies=keep_copies(model, dtype)),
        guard=Guard(device, scaled=dtype == torch.float16),
    )  # fmt: skip
    step = TrainStep(state, Eva(), lambda batch: target, clip_grad=plain.CLIP_NORM)
    number = torch.arange(shape.batch)
    views = torch.zeros_like(number)
    batch = Batch(images=shape.images(), mask=shape.mask(), ids=number, views=views)
    return lambda: step(batch, rate=1e-3)


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
        step = training_step(ours, shape, target)
        return _variant(ours, step, lambda: ours.loss(raw, indices, target))
    model = _plain_class(name, kit)(shape.sizes)
    model.load_state_dict(state or model.state_dict())
    model.to(shape.device, shape.dtype)
    if name == "compile":
        _compile(model, kit)
    # made on the host, as by a loader
    inputs = tuple(t.to(shape.device) for t in model.inputs(mask.cpu()))
    plain_optimizer = plain.make_optimizer(model)
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
