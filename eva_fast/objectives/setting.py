"""What is known of a run before anything is built."""

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from eva_fast.acceleration import accelerate
from eva_fast.errors import UsageError
from eva_fast.layers import use_fp8
from eva_fast.layers.inputs import Statistics
from eva_fast.model import (
    Backbone,
    BeitViT,
    DecoderSizes,
    EvaViT,
    MaskedAutoencoder,
    MaskedBackbone,
    ModelSizes,
    Sizes,
    SwinV2,
    create_model,
    is_beit,
)
from eva_fast.model.token_vit import TokenViT
from eva_fast.model.variant import VARIANT_OPTIONS, Variant
from eva_fast.model.vqkd import VqKd

if TYPE_CHECKING:
    from eva_fast.config import Config

log = logging.getLogger(__name__)
Student = TypeVar(
    "Student", EvaViT, BeitViT, SwinV2, Backbone, MaskedBackbone, MaskedAutoencoder, VqKd, TokenViT
)
SIZE_OPTIONS = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_hidden")


def chosen_sizes(config: "Config") -> dict[str, int | None]:
    """What the options say of the student's sizes beside its name, and the images' channels."""
    sizes = {name: getattr(config.model, name) for name in SIZE_OPTIONS}
    return {**sizes, "channels": config.data.channels}


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What is known of a run before anything is built."""

    config: "Config"
    sizes: Sizes
    """Of the student; `predict_dim` is the preset's, since the teacher is not known yet."""
    device: torch.device
    compute_dtype: torch.dtype
    """Of the student's blocks and of the teacher; bfloat16 where the blocks' products are fp8."""

    @property
    def vit(self) -> ModelSizes:
        """The sizes of a student that is a ViT, as those of all objectives without `swin` are."""
        assert isinstance(self.sizes, ModelSizes)
        return self.sizes

    @property
    def variant(self) -> Variant:
        """What an `EvaViT` has beside EVA-01's network, as the options say it."""
        said = {name: getattr(self.config.model, name) for name in VARIANT_OPTIONS}
        return Variant(**{name: value for name, value in said.items() if value is not None})

    def student(self, predict_dim: int) -> EvaViT | MaskedBackbone:
        """The student that the options name, with a head of that width, random values."""
        model, run = self.config.model, self.config.run
        student = create_model(
            model.model,
            **chosen_sizes(self.config),
            predict_dim=predict_dim,
            drop_path=model.drop_path,
            variant=self.variant,
            compute_dtype=self.compute_dtype,
            kernels=run.kernels,
        )
        return self.as_run(student)

    def encoder(self) -> EvaViT | BeitViT | SwinV2 | Backbone:
        """The student that the options name, without what predicts of it, random values."""
        model = self.config.model
        eva = isinstance(self.sizes, ModelSizes) and not is_beit(model.model)
        student = create_model(
            model.model,
            **chosen_sizes(self.config),
            predict_dim=1 if eva else None,
            drop_path=model.drop_path,
            variant=self.variant,
            compute_dtype=self.compute_dtype,
            kernels=self.config.run.kernels,
        )
        if isinstance(student, EvaViT):  # its files have these; nothing is trained towards them
            student.lm_head.requires_grad_(False)
            student.mask_token.requires_grad_(False)
        return self.as_run(student)

    def autoencoder(
        self, predict_dim: int, decoder_depth: int, statistics: Statistics
    ) -> MaskedAutoencoder:
        """A masked autoencoder of the student's sizes with predictions of that width, random values.
        decoder_depth: of a decoder whose depth the options leave open; the options name the rest.
        statistics: what uint8 images are normalised with, unless the options say it."""
        options = self.config.objective
        statistics = self.config.model.normalize or statistics
        depth = decoder_depth if options.decoder_depth is None else options.decoder_depth
        return self.as_run(
            MaskedAutoencoder(
                replace(self.vit, predict_dim=predict_dim),
                DecoderSizes(dim=options.decoder_dim, depth=depth, heads=options.decoder_heads),
                statistics,
                compute_dtype=self.compute_dtype,
                kernels=self.config.run.kernels,
            )
        )

    def as_run(self, student: Student) -> Student:
        """The student with the products and the checkpointing that the run's options ask for."""
        run = self.config.run
        if run.precision == "fp8":
            if isinstance(student, SwinV2):
                raise UsageError("precision='fp8' is of a ViT's blocks: a Swin computes in 'bf16'")
            if isinstance(student, Backbone | MaskedBackbone):
                raise UsageError(
                    f"precision='fp8' is of this package's own ViTs: {student.sizes.name} computes in "
                    "'bf16'"
                )
            left = use_fp8(student)
            if left:
                log.warning(
                    "precision fp8: %d Linears stay in bf16, %s",
                    len(left), ", ".join(f"{name} ({why})" for name, why in left.items()),
                )  # fmt: skip
        encoder: Any = student.encoder if isinstance(student, MaskedBackbone) else student
        if isinstance(encoder, Backbone) and encoder.blocks and run.kernels != "torch":
            _fuse(encoder)
        student.set_grad_checkpointing(run.grad_checkpointing, run.grad_checkpointing_share)
        return student


def _fuse(student: Backbone) -> None:
    """Puts the fused layers into a transformer of another library where they compute the same."""
    try:
        accelerate(student.network)
    except UsageError as reason:
        log.info("%s runs on its library's own layers: %s", student.sizes.name, reason)
