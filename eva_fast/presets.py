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
        number = isinstance(batch, int | float)  # what is none is refused with the other options
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

RECIPES = {"eva-g14": EVA_G14}


def with_recipe(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with the defaults of the recipe that they name, or as they are. UsageError for an
    unknown name."""
    name = options.get("recipe")
    if name is None:
        return dict(options)
    if name not in RECIPES:
        near = difflib.get_close_matches(str(name), RECIPES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(RECIPES)}"
        raise UsageError(f"unknown recipe {name!r}; {hint}")
    return RECIPES[name].merged(options)
