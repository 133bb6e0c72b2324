"""The masks of objectives whose student sees the visible patches alone."""

from eva_fast.data import Field, uniform_mask_fields
from eva_fast.errors import UsageError
from eva_fast.model import is_beit
from eva_fast.objectives.setting import Setting

VISIBLE_SHARE = 1 / 4


def uniform_masks(setting: Setting) -> list[Field]:
    """The fields `mask` and `visible` of uniformly drawn patches: int(N / 4) stay, as MAE's code rounds,
    or as many as `mask_count` leaves. UsageError for options that do not fit."""
    name = setting.config.model.model
    if is_beit(name):
        raise UsageError(
            f"this objective's student is a plain ViT: write {name.replace('beit', 'vit', 1)} for {name}"
        )
    options, patches = setting.config.objective, setting.sizes.num_patches
    for name in ("mask_min_block", "mask_max_block"):
        if getattr(options, name) is not None:
            raise UsageError(
                f"{name} is of masks in blocks; this objective drops patches one by one: leave it out"
            )
    count = options.mask_count
    visible = max(1, int(patches * VISIBLE_SHARE)) if count is None else patches - count
    if not 0 < visible < patches:
        raise UsageError(f"mask_count must be between 1 and {patches - 1} here, got {count}")
    return [*uniform_mask_fields(setting.sizes.grid, visible)]
