"""What is known of a run before anything is built."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from eva_fast.model import EvaViT, ModelSizes, create_model

if TYPE_CHECKING:
    from eva_fast.config import Config

SIZE_OPTIONS = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_hidden")


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What is known of a run before anything is built."""

    config: "Config"
    sizes: ModelSizes
    """Of the student; `predict_dim` is the preset's, since the teacher is not known yet."""
    device: torch.device
    compute_dtype: torch.dtype
    """Of the student's blocks and of the teacher."""

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
        student.set_grad_checkpointing(run.grad_checkpointing, run.grad_checkpointing_share)
        return student
