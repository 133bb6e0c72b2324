"""A run without values: what its objective builds and asks for, on meta tensors, counted.

All that is known of the objective is what a run knows: its sample, its request, its module, its loss.
Drop-path is left out: its draws are no arithmetic, and a GPU makes them for all blocks at once.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from eva_fast.config import Config
from eva_fast.data import Batch, Field, Ragged
from eva_fast.data.samples.fields import IDS, VIEWS
from eva_fast.errors import UsageError
from eva_fast.layers import keep_copies
from eva_fast.model import Backbone, ModelSizes, Sizes, named_sizes, sizes_of
from eva_fast.model.vqkd import VqKdSizes
from eva_fast.objectives import open_objective
from eva_fast.objectives.base import Objective
from eva_fast.objectives.request import Request, answer, see_channels
from eva_fast.objectives.setting import Setting, chosen_sizes
from eva_fast.planning.count import Operator, StepCount, along, at_batch, line
from eva_fast.planning.counter import Recorder, saved_storages
from eva_fast.planning.flash import FlashAttention
from eva_fast.planning.rates import wide
from eva_fast.planning.students import OURS, model_flops
from eva_fast.planning.teachers import PlannedTeacher, planned_teacher
from eva_fast.train.resolve import sample_options

META = torch.device("meta")
TOKENIZER = "eva_b_patch16_224"
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """What a run would build, and what its steps cost."""

    objective: Objective
    setting: Setting
    fields: tuple[Field, ...]
    request: Request | None
    teacher: PlannedTeacher | None
    dtype: torch.dtype
    """Of the blocks' products; float8_e4m3fn beside bfloat16."""
    device: str
    """cuda or cpu: whose kernels."""
    _counts: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, config: Config, dtype: torch.dtype, device: str) -> "PlannedRun":
        """The run of these options. UsageError for options that do not fit together, and for a teacher
        whose sizes are not known without its weights."""
        config = config.settled()
        model = replace(config.model, drop_path=0.0)
        kernels: Any = "triton" if device == "cuda" else "native"
        config = replace(config, model=model, run=replace(config.run, kernels=kernels))
        sizes = named_sizes(config.model.model, **chosen_sizes(config))
        setting = Setting(config=config, sizes=sizes, device=META, compute_dtype=wide(dtype))
        objective = open_objective(config.objective.objective)
        fields = sample_options(setting, objective)["fields"]
        request, teacher = objective.request(setting), None
        if request is not None:
            teacher = planned_teacher(
                config.teacher.teacher, sizes.grid, wide(dtype), point=request.point,
                cls=bool(request.cls), tokenizer=_tokenizer(setting),
            )  # fmt: skip
            see_channels(teacher.module, config.data, config.teacher.teacher_channels)
            setting = replace(setting, sizes=replace(sizes, predict_dim=teacher.dim))
        return cls(
            objective=objective, setting=setting, fields=tuple(fields), request=request,
            teacher=teacher, dtype=dtype, device=device,
        )  # fmt: skip

    @property
    def sizes(self) -> Sizes:
        return self.setting.sizes

    @property
    def baselines(self) -> tuple[str, ...]:
        """Other formulations of the same step that can be counted."""
        own = isinstance(self.sizes, ModelSizes) and self.sizes.channels == 3
        variant = self.setting.variant
        own = own and variant.layer_scale is None and variant.relative_bias == "none"
        return self.objective.baselines if own else ()

    @property
    def masked(self) -> int:
        """Masked patches an image; 0 where a sample has no mask."""
        return next((f.shape[0] for f in self.fields if f.name == "mask"), 0)

    @property
    def can_recompute(self) -> bool:
        """Whether the student has activation checkpointing."""
        try:
            self.build(1.0)
        except UsageError:
            return False
        return True

    def build(self, recompute: float = 0.0) -> nn.Module:
        """The module that trains, without values; that share of its blocks is checkpointed."""
        run = replace(
            self.setting.config.run, grad_checkpointing=recompute > 0,
            grad_checkpointing_share=recompute or 1.0,
        )  # fmt: skip
        setting = replace(self.setting, config=replace(self.setting.config, run=run))
        with META:
            teacher = None if self.teacher is None else self.teacher.module
            return self.objective.build(setting, teacher)

    def count(self, batch: int, recompute: float = 0.0) -> StepCount:
        """A step of `batch` images, forward and backward, without teacher and optimiser.

        recompute: share of the blocks that are checkpointed."""
        two, three = (self._counted(n, recompute) for n in (2, 3))
        try:
            return at_batch(batch, two, three)
        except ValueError:  # an operator more for so many rows
            return self._counted(batch, recompute)

    def teacher_operators(self, batch: int) -> tuple[Operator, ...]:
        """What the teacher runs to answer for `batch` images."""
        two, three = (self._kept("teacher", n, self._teacher_operators) for n in (2, 3))
        try:
            return along(two, three, batch)
        except ValueError:
            return self._kept("teacher", batch, self._teacher_operators)

    def block_bytes(self, batch: int) -> int:
        """The most that one block keeps for the backward: what a checkpointed one keeps for the time
        of its own backward. 0 where nothing can be checkpointed."""
        two, three = (self._kept("block", n, self._block_bytes) for n in (2, 3))
        return line(two, three, batch)

    def _kept(self, what: Any, batch: int, count: Callable[[int], Any]) -> Any:
        """`count(batch)`, counted once."""
        if (what, batch) not in self._counts:
            self._counts[what, batch] = count(batch)
        return self._counts[what, batch]

    def _teacher_operators(self, batch: int) -> tuple[Operator, ...]:
        recorder = Recorder(self.masked * batch)
        with self._recording(recorder):
            self.target(batch)
        return tuple(recorder.operators)

    def _block_bytes(self, batch: int) -> int:
        module, loss, copies = self._step(batch)
        kept: list[int] = []
        with saved_storages(module, copies) as saved:
            for block in module.modules():
                if hasattr(block, "recompute"):
                    block.register_forward_pre_hook(lambda *_: kept.append(-sum(saved.values())))
                    block.register_forward_hook(lambda *_: kept.append(sum(saved.values())))
            with self._recording(Recorder(self.masked * batch)):
                loss()
        return max((before + after for before, after in zip(kept[::2], kept[1::2])), default=0)

    def _counted(self, batch: int, recompute: float) -> StepCount:
        return self._kept(recompute, batch, lambda batch: self._count(batch, recompute))

    def _count(self, batch: int, recompute: float) -> StepCount:
        module, loss, copies = self._step(batch, recompute)
        recorder = Recorder(self.masked * batch)
        with self._recording(recorder):
            with saved_storages(module, copies) as saved:
                value = loss()
            kept = sum(saved.values())
            recorder.phase = "backward"
            value.backward()
        operators = tuple(recorder.operators)
        if recompute:
            needed = self._counted(batch, 0.0).needed_flops
        elif self.baselines:
            needed = model_flops(self.setting.vit, batch, self.masked)  # alike for all formulations
        else:
            needed = _needed(operators)
        return StepCount(
            formulation=OURS, sizes=self.sizes, batch=batch, masked=self.masked, dtype=self.dtype,
            operators=operators, saved_bytes=kept, needed_flops=needed,
            parameters=sum(p.numel() for p in module.parameters() if p.requires_grad),
        )  # fmt: skip

    def _step(self, batch: int, recompute: float = 0.0) -> tuple[nn.Module, Any, list[Tensor]]:
        """A module, the call that gives its loss, and the copies of weights that it keeps."""
        module = self.build(recompute)
        if isinstance(self.objective.exported(module), Backbone):
            # What runs by autocast, which meta tensors have not, is counted in its products' dtype.
            module = module.to(self.setting.compute_dtype)
        copies = list(keep_copies(module, wide(self.dtype)).values())
        with self._recording(Recorder(self.masked * batch)):
            target = self.target(batch)
        images = self.batch(batch)

        def loss() -> Tensor:
            with torch.no_grad():
                wanted = self.objective.target(module, images) if target is None else target
            return self.objective.loss(module, images, wanted)[0]

        return module, loss, copies

    def target(self, batch: int) -> Tensor | None:
        """What the teacher answers to it; None where nothing is asked."""
        teacher = None if self.teacher is None else self.teacher.module
        return answer(teacher, self.request)(self.batch(batch))

    def batch(self, size: int) -> Batch:
        """A micro-batch of that many images, on the meta device."""
        return Batch({f.name: _column(f, size) for f in (*self.fields, IDS, VIEWS)}).to(META)

    @contextmanager
    def _recording(self, recorder: Recorder) -> Iterator[None]:
        with META, FlashAttention(self.device), recorder:
            yield


def _tokenizer(setting: Setting) -> VqKdSizes | None:
    """Of the published tokenizer (ViT-B, whatever the student) for this student's images and patches,
    with the codes of the run's options."""
    sizes, options = setting.sizes, setting.config.objective
    if not isinstance(sizes, ModelSizes):
        return None
    encoder = replace(sizes_of(TOKENIZER), img_size=sizes.img_size, patch_size=sizes.patch_size)
    return VqKdSizes(student=encoder, codes=options.codebook_size, code_dim=options.code_dim)


def _column(field: Field, size: int) -> Tensor | Ragged:
    values = torch.from_numpy(np.zeros((size, *field.shape), field.dtype))
    return values if field.most is None else Ragged(values, torch.arange(size + 1))


def _needed(operators: tuple[Operator, ...]) -> int:
    """FLOPs of a step in which flash attention's backward is two forwards, without the scores that it
    computes again."""
    again = sum(op.flops for op in operators if op.flash and op.phase == "backward") // 5
    return sum(op.flops for op in operators) - again
