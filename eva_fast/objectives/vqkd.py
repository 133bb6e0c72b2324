"""VQ-KD: a tokenizer whose codes tell a frozen teacher's features (Peng et al. 2022, BEiT v2, section
3.1, and its code). What it writes is the teacher of the objective `tokens`.

Loss, over all patches: mean of 1 - cos(reconstruction, target), plus the mean square of z - code over
patches and channels, which moves z alone. The codebook moves by its own average, once a step.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eva_fast.data import Batch, Field
from eva_fast.errors import UsageError
from eva_fast.model.vqkd import VqKd, VqKdSizes
from eva_fast.objectives.base import Objective
from eva_fast.objectives.code_picture import code_colours, squares
from eva_fast.objectives.picture import pca_colours, save_columns
from eva_fast.objectives.request import Request, teachers_view
from eva_fast.objectives.setting import Setting
from eva_fast.ops.negative_cosine import negative_cosine
from eva_fast.weights import write_code_model

COMMITMENT = 1.0
DECODER_DEPTH = 3
# A code counts as used while its moving average shows one row within about this many steps.
SEEN_WITHIN = 400
TITLES = ("image", "teacher", "from the codes", "codes")


class TrainTokenizer(Objective):
    """Features through a codebook."""

    name = "vqkd"
    metrics = ("reconstruction_loss", "commitment_loss", "codes_used")
    capturable = True
    perfect = 0.0

    def sample(self, setting: Setting) -> list[Field]:
        depth = setting.config.objective.decoder_depth
        if depth is not None and depth < 1:
            raise UsageError(f"decoder_depth must be at least 1, got {depth}")
        return super().sample(setting)

    def request(self, setting: Setting) -> Request:
        return Request(
            rows="all", norm_after="calibrated" if setting.config.teacher.whiten else "none"
        )

    def build(self, setting: Setting, teacher: nn.Module | None) -> VqKd:
        options = setting.config.objective
        width = cast(int, cast(Any, teacher).dim)
        sizes = VqKdSizes(
            student=replace(setting.vit, predict_dim=width), codes=options.codebook_size,
            code_dim=options.code_dim, decoder_depth=options.decoder_depth or DECODER_DEPTH,
        )  # fmt: skip
        return setting.as_run(
            VqKd(sizes, compute_dtype=setting.compute_dtype, kernels=setting.config.run.kernels)
        )

    def start(
        self,
        module: nn.Module,
        teacher: nn.Module | None,
        setting: Setting,
        batches: Callable[[int], Iterator[Batch]],
    ) -> None:
        """Calibration, then k-means of the first batch."""
        super().start(module, teacher, setting, batches)
        tokenizer, size = cast(VqKd, module), setting.config.optim.batch_size
        with closing(batches(size)) as found, torch.no_grad():  # type: ignore[type-var]
            samples = tokenizer.encode(next(found).images)
        generator = torch.Generator().manual_seed(setting.config.run.seed)
        tokenizer.quantize.start(samples, generator)

    def loss(
        self, module: nn.Module, batch: Batch, target: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        tokenizer = cast(VqKd, module)
        z, quantised, _, reconstruction = tokenizer(batch.images)
        rows = cast(Tensor, target).flatten(0, 1)
        loss, parts = tokenizer_loss(z, quantised, reconstruction, rows)
        measured = dict(zip(self.metrics, (*parts, tokenizer.quantize.used(SEEN_WITHIN))))
        return loss, measured

    def averaged(self, target: Tensor) -> Tensor:
        return F.normalize(target.flatten(0, 1).float(), dim=1)

    def constant_loss(self, constant: Tensor, rows: Tensor) -> Tensor:
        """Of a constant reconstruction, without codes and so without commitment."""
        return 1 - (rows @ F.normalize(constant, dim=0)).mean()

    def begin_epoch(self, module: nn.Module) -> None:
        """`codes_used` is of one pass, as the official code logs it."""
        cast(VqKd, module).quantize.cluster_size.zero_()

    def after_step(self, module: nn.Module, applied: Tensor) -> None:
        cast(VqKd, module).quantize.update(applied)

    def save(
        self, module: nn.Module, path: Path, weights: dict[str, Tensor] | None = None
    ) -> nn.Module:
        """The whole tokenizer in official naming."""
        write_code_model(cast(VqKd, module), path, weights)
        return module

    def picture(
        self, path: Path, module: nn.Module, teacher: nn.Module | None, batch: Batch
    ) -> None:
        """Images, the teacher's features and their reconstruction as PCA colours, and the codes."""
        tokenizer = cast(VqKd, module)
        _, _, index, rows = tokenizer(batch.images)
        features = cast(nn.Module, teacher)(teachers_view(batch)).float().cpu()
        rows = rows.view(features.shape).float().cpu()
        units = [F.normalize(torch.nan_to_num(f), dim=-1) for f in (features, rows)]
        drawn = (*pca_colours(*units), code_colours(index.view(len(features), -1)))
        side = batch.images.shape[-1]
        maps = [squares(colours, tokenizer.grid, side) for colours in drawn]
        columns = dict(zip(TITLES, (batch.images, *maps)))
        cosine = (units[0] * units[1]).sum(-1).mean(1)
        notes = [f"{value:+.2f}" for value in cosine.tolist()]
        save_columns(path, columns, notes, "cosine")


def tokenizer_loss(
    z: Tensor, quantised: Tensor, reconstruction: Tensor, target: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """(loss, its two parts without gradients) of rows z and quantised [M,d], reconstruction and
    target [M,C]; float32 scalars."""
    rebuilt = 1 + negative_cosine(reconstruction, target.detach())
    commitment = F.mse_loss(z, quantised.detach())
    return rebuilt + COMMITMENT * commitment, (rebuilt.detach(), commitment.detach())
