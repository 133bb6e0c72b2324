"""`eva_fast.accelerate`: checks a whole network, then changes its blocks in place."""

import logging
import re
from typing import NamedTuple, TypeVar

from torch import nn

from eva_fast import layers
from eva_fast.acceleration import (
    official_blocks,
    open_clip_blocks,
    probe,
    timm_blocks,
    transformers_blocks,
)
from eva_fast.acceleration.anatomy import AttentionPart, MlpPart, short_name, unlike_norm
from eva_fast.acceleration.classes import accelerated_class, is_accelerated, original_class
from eva_fast.acceleration.family import Family
from eva_fast.acceleration.report import BlockReport, Report
from eva_fast.acceleration.wrapped import obstacle
from eva_fast.errors import UsageError

log = logging.getLogger(__name__)
Model = TypeVar("Model", bound=nn.Module)

FAMILIES: tuple[Family, ...] = (
    *timm_blocks.FAMILIES,
    *transformers_blocks.FAMILIES,
    *open_clip_blocks.FAMILIES,
    official_blocks.FAMILY,
)
KNOWN = (
    "It knows the pre-norm blocks of timm's VisionTransformer, Eva and Beit, of transformers' ViT, "
    "DeiT, MAE, CLIP, SigLIP, DINOv2 and DINOv3, of open_clip and of EVA-01's code"
)
OTHERS = {
    "timm.models.vision_transformer.ResPostBlock": "it normalises behind its branches, not before",
    "timm.models.eva.EvaBlockPostNorm": "it normalises behind its branches, not before",
    "timm.models.vision_transformer.ParallelScalingBlock": "attention and MLP run side by side",
    "timm.models.vision_transformer.DiffParallelScalingBlock": "attention and MLP run side by side",
    "timm.models.vision_transformer.ParallelThingsBlock": "several attentions run side by side",
    "timm.models.vision_transformer_sam.Block": "attention in windows, with a bias for each image",
    "timm.models.vision_transformer_relpos.RelPosBlock": "its scores have a bias of relative positions",
}
"""Blocks that are known and not taken, and what differs."""


class _Found(NamedTuple):
    """A block, checked."""

    name: str
    block: nn.Module
    family: Family
    report: BlockReport


def accelerate(model: Model) -> Model:
    """Puts the fused layers into a vision transformer of another library, in place; returns `model`.

    For networks that hold blocks of timm's `VisionTransformer`, `Eva` or `Beit`, of transformers'
    ViT, DeiT, MAE, CLIP, SigLIP or DINO, of open_clip's, or of EVA-01's code. The model stays the
    object it is: parameters, their names, the state dict, hooks, train and eval, autocast, gradient
    checkpointing and `torch.compile` (call this before) are as they were, outputs and gradients are
    the same but for rounding. Where a part of a block is something else than the fused layers
    compute, or a call asks for it (a mask, dropout in training, hooks inside a block), the library's
    own code runs that part. `model.eva_fast_report` says what was taken. Which kernels run is decided
    as for eva_fast's own networks (`eva_fast.ops.set_kernels`): C++ on CPUs, Triton on NVIDIA GPUs.
    A second call changes nothing. There is no second derivative through a fused block.

    Raises UsageError, with the model as it was, for a network that is compiled, scripted, sharded or
    quantised already (`DistributedDataParallel` may be around it), for one without blocks that are
    known, and for one whose blocks are not built as they usually are; it names the block and what
    differs.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"accelerate takes a network (torch.nn.Module), not a {short_name(model)}")
    done = obstacle(model)
    if done is not None:
        raise UsageError(done)
    own = [(name, m) for name, m in model.named_modules() if isinstance(m, layers.Block)]
    found = _checked(model)
    if not found and not own:
        raise UsageError(_unknown(model))
    if found and not own and all(not _takes(f) for f in found):
        first = found[0]
        raise UsageError(f"{_place(first.name, first.block)} has nothing to fuse: {first.report}")
    _probe(found)
    for _, block, family, _ in found:
        if not is_accelerated(block):
            block.__class__ = accelerated_class(type(block), family.forward)
    reports = {name: BlockReport("eva_fast.layers.block.Block", None, None) for name, _ in own}
    report = Report(reports | {f.name: f.report for f in found})
    model.eva_fast_report = report  # type: ignore[assignment]
    log.info("accelerated %s: %s", short_name(model), report)
    return model


def _checked(model: nn.Module) -> list[_Found]:
    """All known blocks; UsageError where one cannot be changed."""
    found = []
    for name, module in model.named_modules():
        family = _family(module)
        if family is None:
            continue
        found.append(_Found(name, module, family, _report(model, name, module, family)))
    known = {id(f.block) for f in found}
    for holder in {f.name.rpartition(".")[0] for f in found}:
        for number, module in model.get_submodule(holder).named_children():
            if id(module) not in known and isinstance(
                model.get_submodule(holder), (nn.ModuleList, nn.Sequential)
            ):
                raise UsageError(_differs(f"{holder}.{number}".lstrip("."), module))
    return found


_BY_NAME = {name: family for family in FAMILIES for name in family.names}


def _family(module: nn.Module) -> Family | None:
    """Whose block it is; files of the official code are known wherever they were imported from."""
    kind = original_class(module)
    file = kind.__module__.rpartition(".")[2]
    return _BY_NAME.get(_kind(module)) or _BY_NAME.get(f"{file}.{kind.__qualname__}")


def _kind(module: nn.Module) -> str:
    """The library's class with its module."""
    kind = original_class(module)
    return f"{kind.__module__}.{kind.__qualname__}"


def _report(model: nn.Module, name: str, block: nn.Module, family: Family) -> BlockReport:
    """What of a block is taken; UsageError where it is not built as known."""
    anatomy = family.read(block)
    if isinstance(anatomy, str):
        raise UsageError(f"{_place(name, block)} is not built as accelerate knows it: {anatomy}")
    parts = anatomy.attention, anatomy.mlp
    attention, mlp = (p if isinstance(p, str) else None for p in parts)
    rates = [p.dropout for p in parts if isinstance(p, (AttentionPart, MlpPart)) and p.dropout]
    return BlockReport(
        _kind(block),
        family.called_with(block, _owners(model, name)) or attention,
        mlp,
        f"dropout of {max(rates)}" if rates else None,
    )


def _owners(model: nn.Module, name: str) -> list[nn.Module]:
    """The networks around a block and its list, from the innermost out; none of a block alone."""
    path = name.split(".") if name else []
    return [model.get_submodule(".".join(path[:end])) for end in range(len(path) - 2, -1, -1)]


def _takes(found: _Found) -> bool:
    """Whether anything of a block is fused: at least the addition and the norm between its branches."""
    anatomy = found.family.read(found.block)
    if isinstance(anatomy, str):
        return False
    width = getattr(anatomy.norm1, "weight", None)
    return width is not None and unlike_norm(anatomy.norm2, "norm2", len(width)) is None


def _probe(found: list[_Found]) -> None:
    """Runs one block of each kind both ways; UsageError where the results differ."""
    probed = set()
    for name, block, family, report in found:
        shapes = tuple(p.shape for p in block.parameters())
        kind = original_class(block), report, shapes
        if is_accelerated(block) or kind in probed:
            continue
        probed.add(kind)
        try:
            difference = probe.disagreement(block, family)
        except (RuntimeError, TypeError) as error:  # parameters that are computed cannot be copied
            raise UsageError(
                f"{_place(name, block)} cannot be tried out on a copy: {error}"
            ) from error
        if probe.refuses(difference):
            raise UsageError(
                f"{_place(name, block)} computes something else than accelerate knows of it: on random "
                f"values the results differ by {difference:.1e} of the largest; is its code changed?"
            )


def _place(name: str, block: nn.Module) -> str:
    return f"block {name!r} ({_kind(block)})"


def _differs(name: str, module: nn.Module) -> str:
    why = OTHERS.get(_kind(module), "it is no block that is known")
    return f"accelerate leaves {_place(name, module)} alone: {why}. {KNOWN}"


def _unknown(model: nn.Module) -> str:
    """Names the first module that looks like a block of the network."""
    for name, module in model.named_modules():
        if re.search("Block|Layer$", short_name(module)) and len(list(module.children())) > 1:
            return _differs(name, module)
    return f"{short_name(model)} has no block of a vision transformer. {KNOWN}"
