"""The whole training step: forward, backward, clipping and AdamW, from the loader's batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from bench import libraries
from bench.harness import Case, Variant
from bench.kit import Kit
from bench.official import official_code
from bench.shapes import Shape
from eva_fast.baselines import training as plain
from eva_fast.data import Batch
from eva_fast.layers import keep_copies, keep_largest
from eva_fast.layers.inputs import normalise
from eva_fast.model import EvaViT
from eva_fast.objectives.eva import Eva
from eva_fast.train import TrainState, TrainStep, make_optimizer
from eva_fast.train.captured import CapturedStep
from eva_fast.train.config import OptimConfig
from eva_fast.train.guard import Guard
from eva_fast.train.step import Outcome
from eva_fast.train.sums import Sums

MODES = ("step",)
OFFICIAL_CODE = "official code"
CAPTURED = "eva_fast captured"


def training_step(
    model: EvaViT, shape: Shape, target: torch.Tensor, captured: bool = False
) -> Callable[[], Outcome]:
    """The step of a run, guard and sums for the log included, on one batch of bytes. The target
    stands for the teacher, which is timed by itself. captured: as a CUDA graph, from the first call
    on."""
    step, batch = step_and_batch(model, shape, target)
    if not captured:
        return lambda: step(batch, rate=1e-3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graphed = CapturedStep(step, "on")
    while graphed.captured is None:
        graphed(batch, rate=0.0)
    model.load_state_dict(before)
    return lambda: graphed(batch, rate=1e-3)


def step_and_batch(
    model: EvaViT, shape: Shape, target: torch.Tensor, loader: Any = None
) -> tuple[TrainStep, Batch]:
    """The step, and what it is called with."""
    device, dtype = torch.device(shape.device), shape.dtype
    state = TrainState(
        module=model, teacher=None, loader=loader, device=device, sums=Sums((), device),
        optimizer=make_optimizer(
            model, copies=keep_copies(model, dtype), largest=keep_largest(model)
        ),
        guard=Guard(device, scaled=dtype == torch.float16, spike=OptimConfig().spike),
    )  # fmt: skip
    step = TrainStep(state, Eva(), lambda batch: target, clip_grad=plain.CLIP_NORM)
    number = torch.arange(shape.batch)
    views = torch.zeros_like(number)
    return step, Batch(images=shape.images(), mask=shape.mask(), ids=number, views=views)


def _state(shape: Shape) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return EvaViT(shape.sizes).state_dict()


@dataclass(frozen=True, slots=True)
class Plain:
    """How a variant in plain PyTorch trains."""

    tuned: bool = True
    """`TunedViT`; else the official formulation."""
    masters: bool = True
    """In 16 bits: the model cast whole, with float32 masters; else float32 parameters and autocast.
    With masters the residual stream is 16-bit, as eva_fast's is."""
    compiled: str = ""
    """What torch.compile gets: "blocks", each as one graph that all share, or "whole", the loss."""
    libraries: bool = False
    """With the parts of other libraries, see `bench.libraries`."""


PLAIN = {
    "reference": Plain(tuned=False),
    "tuned": Plain(masters=False),
    "tuned half": Plain(),
    "libraries": Plain(libraries=True),
    "compile blocks": Plain(compiled="blocks"),
    "compile": Plain(compiled="whole"),
}
"""Well-written PyTorch has two homes for its float32 weights, and is timed in both; torch.compile
gets the leaner one."""


def _compile(model: plain.OfficialViT, how: str, kit: Kit) -> None:
    backend = "inductor" if kit.timed else "eager"
    torch._dynamo.reset()
    if how == "blocks":
        for block in model.blocks:
            block.compile(backend=backend, dynamic=False)
    else:
        model.loss = torch.compile(model.loss, backend=backend, dynamic=False)


def make(
    name: str, shape: Shape, kit: Kit, state: dict[str, torch.Tensor] | None = None
) -> Variant:
    """One variant: a model, its optimiser and a batch. The plain variants get normalised images,
    as a loader hands them over; eva_fast gets bytes."""
    raw, indices, mask = shape.images(), shape.mask(), shape.bool_mask()
    target = shape.randn(shape.batch * shape.masked, shape.sizes.predict_dim, seed=9)
    if name in ("eva_fast", CAPTURED):
        with torch.device(shape.device):
            ours = EvaViT(shape.sizes, compute_dtype=shape.dtype, kernels="auto")
        ours.load_state_dict(state or ours.state_dict())
        step = training_step(ours, shape, target, captured=name == CAPTURED)
        return _variant(ours, step, lambda: ours.loss(raw, indices, target))
    how = PLAIN.get(name, PLAIN["reference"])
    kind = plain.TunedViT if how.tuned else plain.OfficialViT
    adamw = None
    if how.libraries:
        kind, adamw = libraries.LibraryViT, libraries.found().get("optimizer", (None, None))[1]
    if name == OFFICIAL_CODE:
        kind = official_code(kit.official)
    with torch.device(shape.device):
        model = kind(shape.sizes)
    model.load_state_dict(state or model.state_dict())
    autocast = None
    if shape.dtype != torch.float32 and not how.masters:
        autocast = shape.dtype
    else:
        model.to(shape.dtype)
    if how.compiled:
        _compile(model, how.compiled, kit)
    # made on the host, as by a loader
    inputs = tuple(t.to(shape.device) for t in model.inputs(mask.cpu()))
    plain_optimizer = plain.make_optimizer(model, kind=adamw)
    images = normalise(raw, torch.float32 if autocast else shape.dtype)

    def loss() -> torch.Tensor:
        with plain.casting(shape.device, autocast):
            return model.loss(target, images, *inputs)

    return _variant(
        model,
        lambda: plain.train_step(model, plain_optimizer, images, inputs, target, autocast),
        loss,
    )


def first_step(name: str, shape: Shape, kit: Kit) -> None:
    """Builds a variant and runs one step."""
    torch.manual_seed(0)
    make(name, shape, kit).call()


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    """Every variant starts from the same weights and sees one batch again and again."""
    state = _state(shape)
    names = ["reference", "tuned", "eva_fast"]
    if shape.device == "cuda":
        names.append(CAPTURED)
    else:
        kit.missing[CAPTURED] = "needs a GPU"
    if kit.official is not None:
        names.append(OFFICIAL_CODE)
    if (obstacle := libraries.missing()) or shape.dtype == torch.float32:
        kit.missing["libraries"] = obstacle or "they take 16 bits"
    else:
        names.append("libraries")
    if shape.dtype == torch.float32:
        kit.missing["tuned half"] = "in float32 it is tuned"
    else:
        names.append("tuned half")
    for compiled in ("compile blocks", "compile"):
        if kit.timed and kit.quick:
            kit.missing[compiled] = "not with --quick"
        else:
            names.append(compiled)
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
