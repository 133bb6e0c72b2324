"""What is known of a run before anything is built."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from eva_fast.layers import use_fp8
from eva_fast.model import EvaViT, ModelSizes, create_model

if TYPE_CHECKING:
    from eva_fast.config import Config

log = logging.getLogger(__name__)
SIZE_OPTIONS = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_hidden")


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What is known of a run before anything is built."""

    config: "Config"
    sizes: ModelSizes
    """Of the student; `predict_dim` is the preset's, since the teacher is not known yet."""
    device: torch.device
    compute_dtype: torch.dtype
    """Of the student's blocks and of the teacher; bfloat16 where the blocks' products are fp8."""

    def student(self, predict_dim: int) -> EvaViT:
        """The student that the options name, with a head of that width, random values."""
        model, run = self.config.model, self.config.run
        student = create_model(
            model.model,
            **{name: getattr(model, name) for name in SIZE_OPTIONS},
            predict_dim=predict_dim,
            drop_path=model.drop_path,
            compute_dtype=self.compute_dtype,
            kernels=run.kernels,
        )
        if run.precision == "fp8":
            left = use_fp8(student)
            if left:
                log.warning(
                    "precision fp8: %d Linears stay in bf16, %s",
                    len(left), ", ".join(f"{name} ({why})" for name, why in left.items()),
                )  # fmt: skip
        student.set_grad_checkpointing(run.grad_checkpointing, run.grad_checkpointing_share)
        return student
