"""Recipes: the published defaults of each objective by name, for `recipe=` and `--recipe`.

A recipe is options of a run; what a person says wins over it. Learning rates are of the published
batch: where the publication scales them with the batch, another `batch_size` scales them here too.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from eva_fast.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Options of a run, and which of them follow the batch."""

    options: Mapping[str, Any]
    rates: Mapping[str, float] = field(default_factory=dict)
    """{learning rate: its value for `images` images a step}, times batch_size / images."""
    images: int = 1

    def merged(self, said: Mapping[str, Any]) -> dict[str, Any]:
        """All options, `said` winning."""
        batch = said.get("batch_size", self.options["batch_size"])
        # what is no number of images is refused with the other options
        number = isinstance(batch, int | float) and 0 < batch < 2**63
        scaled = {k: v * batch / self.images for k, v in self.rates.items()} if number else {}
        return {**self.options, **scaled, **said}


# Fang et al., CVPR 2023, and run_eva_pretraining.py.
EVA_G14 = Recipe(
    options=dict(
        objective="eva", model="eva_g_patch14_224", teacher="openai/ViT-L-14", drop_path=0.1,
        mask_count=105, mask_min_block=16, crop_scale=(0.2, 1.0), batch_size=4096, epochs=150.0,
        lr=1e-3, min_lr=1e-5, warmup_lr=0.0, warmup_epochs=2.0, betas=(0.9, 0.98), eps=1e-6,
        weight_decay=0.05, clip_grad=3.0,
    )
)  # fmt: skip

# The rest of what the official launch command says.
EVA01 = Recipe(options=dict(EVA_G14.options, precision="fp16", sharding="zero2"))

# The published log of EVA-L, and MAE's rule for the rate; the log does not tell the batch. Its teacher
# was EVA-CLIP's g/14 after its projection, 1024 wide; timm has the same tower up to there, 1408 wide.
EVA_L14 = Recipe(
    options=dict(
        objective="mae", model="eva_l_patch14_224", teacher="timm/eva_giant_patch14_clip_224",
        drop_path=0.0, mask_count=192, decoder_dim=512, decoder_depth=4, decoder_heads=16,
        crop_scale=(0.2, 1.0), batch_size=4096, epochs=150.0, min_lr=1e-5, warmup_lr=0.0,
        warmup_epochs=2.0, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.05, clip_grad=3.0,
    ),
    rates=dict(lr=1.5e-4), images=256,
)  # fmt: skip

# He et al., CVPR 2022, and main_pretrain.py.
MAE_B16 = Recipe(
    options=dict(
        objective="pixels", model="eva_b_patch16_224", drop_path=0.0, mask_count=147,
        norm_pix=True, decoder_dim=512, decoder_depth=8, decoder_heads=16, crop_scale=(0.2, 1.0),
        batch_size=4096, epochs=1600.0, min_lr=0.0, warmup_lr=0.0, warmup_epochs=40.0,
        betas=(0.9, 0.95), eps=1e-8, weight_decay=0.05, clip_grad=0.0,
    ),
    rates=dict(lr=1.5e-4), images=256,
)  # fmt: skip

# Peng et al. 2022 (BEiT v2), run_vqkd_training.py.
VQKD_B16 = Recipe(
    options=dict(
        objective="vqkd", model="eva_b_patch16_224", teacher="openai/ViT-B-16", drop_path=0.0,
        codebook_size=8192, code_dim=32, decoder_depth=3, crop_scale=(0.08, 1.0),
        batch_size=512, epochs=100.0, min_lr=1e-5, warmup_lr=0.0, warmup_epochs=10.0,
        betas=(0.9, 0.99), eps=1e-8, weight_decay=1e-4, clip_grad=0.0,
    ),
    rates=dict(lr=5e-5), images=128,
)  # fmt: skip

# The same, run_beitv2_pretraining.py, 300 epochs; its teacher is a run of VQ-KD.
BEIT2_B16 = Recipe(
    options=dict(
        objective="tokens", model="eva_b_patch16_224", drop_path=0.0, mask_count=75,
        mask_min_block=16, branch_depth=2, crop_scale=(0.2, 1.0), batch_size=2048, epochs=300.0,
        lr=1.5e-3, min_lr=1e-5, warmup_lr=0.0, warmup_epochs=10.0, betas=(0.9, 0.98), eps=1e-8,
        weight_decay=0.05, clip_grad=3.0,
    )
)  # fmt: skip

# Wei et al. 2022 (Feature Distillation), its 300-epoch configurations; all three rates follow the batch.
_FD = dict(
    objective="fd", crop_scale=(0.08, 1.0), batch_size=2048, epochs=300.0, warmup_epochs=10.0,
    betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05, clip_grad=3.0,
)  # fmt: skip
_FD_RATES = dict(lr=3e-4, min_lr=5e-6, warmup_lr=5e-7)
FD_B16 = Recipe(
    options=dict(_FD, model="beit_b_patch16_224", teacher="openai/ViT-B-16", drop_path=0.2),
    rates=_FD_RATES, images=512,
)  # fmt: skip
FD_L14 = Recipe(
    options=dict(_FD, model="beit_l_patch14_224", teacher="openai/ViT-L-14", drop_path=0.3),
    rates=_FD_RATES, images=512,
)  # fmt: skip

# Its teacher is EsViT's Swin-B, window 14, from a file.
FD_SWINV2_B = Recipe(
    options=dict(_FD, model="swinv2_base_window14_224", drop_path=0.3),
    rates=dict(lr=2e-4, min_lr=1e-5, warmup_lr=1e-6), images=512,
)  # fmt: skip

RECIPES = {
    "fd-b16": FD_B16,
    "fd-l14": FD_L14,
    "fd-swinv2-b": FD_SWINV2_B,
    "eva-g14": EVA_G14,
    "eva01": EVA01,
    "eva-l14": EVA_L14,
    "mae-b16": MAE_B16,
    "vqkd-b16": VQKD_B16,
    "beit2-b16": BEIT2_B16,
}

# Where an objective's own default is not EVA-01's: the crops of Feature Distillation's 100-epoch
# configuration cover most of the image, since nothing else is hidden from the student.
OWN_DEFAULTS: Mapping[str, Mapping[str, Any]] = {"fd": dict(crop_scale=(0.67, 1.0))}


def with_defaults(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options`, below them the defaults of the recipe that they name, and below these the objective's
    own. UsageError for an unknown recipe."""
    merged = _with_recipe(options)
    objective = merged.get("objective")
    name = objective if isinstance(objective, str) else getattr(objective, "name", None)
    own = OWN_DEFAULTS.get(name, {}) if isinstance(name, str) else {}
    return {**own, **merged}


def _with_recipe(options: Mapping[str, Any]) -> dict[str, Any]:
    name = options.get("recipe")
    if name is None:
        return dict(options)
    if not isinstance(name, str) or name not in RECIPES:
        near = difflib.get_close_matches(str(name), RECIPES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(RECIPES)}"
        raise UsageError(f"unknown recipe {name!r}; {hint}")
    return RECIPES[name].merged(options)
