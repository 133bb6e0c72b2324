"""`Objective`: all that a training run does not know by itself.

A run is a loader, a frozen teacher, one trained module and a loop. An objective says what they are
about: which sample, what of the teacher, which module, which loss. It holds no tensors: all that
trains or moves with training (a projector, a codebook as a buffer) is in the module, so that
checkpoints, optimiser, EMA and gradient norm need to see only that.

The methods are called in this order: `sample`, `request`, `build`, `example`, then `start` once in
a run, `loss` and `after_step` in every step, `begin_epoch` between passes, `picture`, `exported`.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from eva_fast.data import BandsField, Batch, Field, ImageField, Ragged
from eva_fast.data.decode.filters import Choice
from eva_fast.data.samples.fields import IDS, VIEWS
from eva_fast.errors import UsageError
from eva_fast.layers.inputs import Statistics
from eva_fast.model import Backbone, BeitViT, EvaViT, MaeEncoder, SwinV2
from eva_fast.objectives.picture import save_columns
from eva_fast.objectives.request import TEACHERS_VIEW, Request
from eva_fast.objectives.setting import Setting
from eva_fast.weights import (
    initialise,
    initialise_backbone,
    initialise_encoder,
    initialise_swin,
    write,
    write_backbone,
    write_student,
)
from eva_fast.weights.student import initialise_beit

log = logging.getLogger(__name__)
CALIBRATION_BATCHES, CALIBRATION_BATCH_SIZE = 8, 64


class Objective:
    """What is trained towards what. Derive from it, say `build` and `loss`, and what else differs."""

    name = "objective"
    metrics: tuple[str, ...] = ()
    """Names of what `loss` measures beside the loss; `metrics.jsonl` holds their means."""
    swin = False
    """Whether its student may be a Swin, which sees whole images and gives no CLS row."""
    backbones: Literal["none", "masked", "all"] = "none"
    """Which networks of other libraries its student may be: none; those whose patches can be masked, a
    `MaskedBackbone`; or all, a `Backbone`."""
    any_channels = False
    """Whether its images may have other than three channels: its `sample` is that of `Objective`, and
    nothing else of it looks at colours."""
    capturable = False
    """Whether `loss` and `after_step` can be captured as a CUDA graph: they read the batch's fields on
    the device alone, change tensors in place, and ask the host for nothing, not for a random number."""

    variants: tuple[str, ...] = ()
    """Options of the student's network (`model/variant.py`) that it takes; of others' students, none."""
    statistics: Statistics = "clip"
    """What the student's uint8 images are normalised with."""
    interpolation: Choice = "bicubic"
    """The filter that crops are resized with, unless the options say another."""
    color_jitter = 0.0
    """How far the colours of images are jittered, unless the options say it."""
    perfect: float | None = None
    """The loss of a perfect prediction, where it is known."""
    baselines: tuple[str, ...] = ()
    """Other formulations of the same step that `eva_fast.baselines` has, for plans to count."""

    def sample(self, setting: Setting) -> list[Field]:
        """What one training sample consists of: the same for training, `start` and pictures.
        ValueError for options that do not fit together."""
        data = setting.config.data
        crops = {"images": data.interpolation or self.interpolation}
        if data.teacher_interpolation is not None:
            if self.request(setting) is None:
                raise UsageError(
                    f"teacher_interpolation: the objective {self.name!r} has no teacher; leave it out"
                )
            crops[TEACHERS_VIEW] = data.teacher_interpolation
        return [self._crop(setting, name, choice) for name, choice in crops.items()]

    def _crop(self, setting: Setting, name: str, interpolation: Choice) -> Field:
        """The crop that the sample's seed draws, resized with that filter: student and teacher see the
        same part of an image in the same colours."""
        data = setting.config.data
        options: dict[str, Any] = dict(
            size=setting.sizes.img_size, scale=data.crop_scale, ratio=data.crop_ratio,
            flip=data.flip, max_megapixels=data.max_megapixels, interpolation=interpolation,
            name=name,
        )  # fmt: skip
        if data.channels != 3:
            return BandsField(*data.statistics, **options)
        jitter = self.color_jitter if data.color_jitter is None else data.color_jitter
        return ImageField(**options, color_jitter=jitter)

    def request(self, setting: Setting) -> Request | None:
        """What the teacher is asked for in every step; None: there is no teacher."""
        return None

    def build(self, setting: Setting, teacher: nn.Module | None) -> nn.Module:
        """The module that trains, on the CPU, its values from torch's global random state. Its
        `no_weight_decay()`, and that of modules in it, name parameters without weight decay beside
        biases and those of one dimension."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it builds")

    def loss(
        self, module: nn.Module, batch: Batch, target: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(mean loss of a micro-batch, measurements of `metrics`), scalars on the device.

        target: the answer to `request`, or what `target` makes. Nothing here may wait for the device."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its loss is")

    def target(self, module: nn.Module, batch: Batch) -> Tensor | None:
        """What `loss` compares with where no teacher is asked, made of the batch. Without gradients;
        nothing may wait for the device."""
        return None

    def target_width(self, module: nn.Module, teacher: nn.Module | None) -> int | None:
        """C of a target [M,C]; None where there is none."""
        return getattr(teacher, "dim", None)

    def averaged(self, target: Tensor) -> Tensor:
        """Rows [M,C] whose running mean is the constant that `constant_loss` scores; of a target
        [M,C]. Without gradients; nothing may wait for the device."""
        return target

    def constant_loss(self, constant: Tensor, rows: Tensor) -> Tensor:
        """The `loss` of predicting `constant` [C] in every place: scalar on the device. An objective
        that does not say it has no `baseline_loss` and `gain` in its metrics.

        rows: `averaged(target)` in float32."""
        raise NotImplementedError(f"{type(self).__name__} does not say what a constant scores")

    def start(
        self,
        module: nn.Module,
        teacher: nn.Module | None,
        setting: Setting,
        batches: Callable[[int], Iterator[Batch]],
    ) -> None:
        """Called once, before the first step of a run and never when it is resumed.

        `batches(size)` iterates over the first batches of the run's images. Here it calibrates the
        teacher where that is asked for."""
        request = self.request(setting)
        if request is not None and request.calibrated:
            log.info(
                "measuring mean and deviation of the teacher's features on %d images ...",
                CALIBRATION_BATCHES * CALIBRATION_BATCH_SIZE,
            )
            with closing(batches(CALIBRATION_BATCH_SIZE)) as found:  # type: ignore[type-var]
                teacher.calibrate(found, CALIBRATION_BATCHES)  # type: ignore[union-attr, operator]

    def after_step(self, module: nn.Module, applied: Tensor) -> None:
        """Called without gradients after each optimiser step, once however many micro-batches it
        had. applied: bool [] on the device; where it is False the step was skipped and nothing may
        move (`torch.where`)."""

    def begin_epoch(self, module: nn.Module) -> None:
        """Called without gradients before the first step of each pass over the images but the first.
        What it changes in the module it changes in place."""

    def exported(self, module: nn.Module) -> nn.Module:
        """The part of the module that is handed on: `model.safetensors`, `PretrainResult.model`. A
        student is written in official naming, another library's network in that library's, anything
        else as its state dict names it."""
        return module

    def example(
        self, setting: Setting, teacher: nn.Module | None, size: int
    ) -> tuple[Batch, Tensor | None]:
        """A micro-batch of noise of `size` images and its target, on the device: kernels are timed
        on it. The shapes are those of `sample` and `request`."""
        request, device = self.request(setting), setting.device
        fields = [*self.sample(setting), IDS, VIEWS]
        batch = Batch({field.name: _noise(field, size) for field in fields}).to(device)
        target = None
        if request is not None and teacher is not None:
            masked = request.rows == "masked"
            tokens = setting.sizes.num_patches + getattr(teacher, "cls", False)
            rows = (batch.mask.numel(),) if masked else (size, tokens)
            target = torch.randn(*rows, int(teacher.dim), device=device)  # type: ignore[arg-type]
        return batch, target

    def alternatives(
        self, module: nn.Module, batch: Batch, target: Tensor | None
    ) -> dict[str, dict[str, Callable[[], Any]]]:
        """{op: {kind: forward and backward}} of ops that replace a part of the step which the step
        itself does not run, so that they are timed too."""
        return {}

    def picture(
        self, path: Path, module: nn.Module, teacher: nn.Module | None, batch: Batch
    ) -> None:
        """Writes what a person looks at to see whether the run learns, as PNG. The module is in
        evaluation mode and there are no gradients."""
        save_columns(path, {"image": batch.images})

    def initialise(self, module: nn.Module, path: Path) -> None:
        """Starts the exported part from a weight file (the option `init_from`). ValueError where
        it does not fit."""
        part = self.exported(module)
        if isinstance(part, MaeEncoder):
            initialise_encoder(part, path)
        elif isinstance(part, SwinV2):
            initialise_swin(part, path)
        elif isinstance(part, BeitViT):
            initialise_beit(part, path)
        elif isinstance(part, EvaViT):
            initialise(part, path)
        elif isinstance(part, Backbone):
            initialise_backbone(part, path)
        else:
            raise UsageError(f"objective {self.name!r} cannot start from a weight file (init_from)")

    def save(
        self, module: nn.Module, path: Path, weights: dict[str, Tensor] | None = None
    ) -> nn.Module:
        """Writes the exported part as safetensors and returns it. weights: {name in `module`:
        value} to take instead of the module's own, an average of them say."""
        part = self.exported(module)
        (prefix,) = (f"{name}." if name else "" for name, m in module.named_modules() if m is part)
        own = {
            name.removeprefix(prefix): value
            for name, value in (weights or {}).items()
            if name.startswith(prefix)
        }
        if isinstance(part, EvaViT | MaeEncoder | SwinV2 | BeitViT):
            write_student(part, path, own)
        elif isinstance(part, Backbone):
            write_backbone(part, path, own)
        else:
            tensors = {**part.state_dict(), **own}
            write(path, {k: t.detach().float().cpu() for k, t in tensors.items()})
        return part


def _noise(field: Field, size: int) -> Tensor | Ragged:
    """A field's part of a batch, as drawn from seeds, of any bytes, or 0."""
    array = np.zeros((size, *field.shape), field.dtype)
    if field.from_seeds:
        field.make_rows(np.arange(size, dtype=np.uint64), array)
    values = torch.from_numpy(array)
    if field.dtype == np.uint8:
        values = torch.randint(256, values.shape, dtype=torch.uint8)
    elif isinstance(field, BandsField):
        values = torch.randn(values.shape)
    return values if field.most is None else Ragged(values, torch.arange(size + 1))
