"""The masks of objectives that hide patches in blocks."""

from eva_fast.data import BlockMaskField
from eva_fast.errors import UsageError
from eva_fast.objectives.setting import Setting


def block_masks(setting: Setting, masked_share: float, block_share: float) -> BlockMaskField:
    """The field `mask` as the options say it; where they do not, with these shares of the patches masked
    and in the smallest block. UsageError for options that do not fit."""
    options, patches = setting.config.objective, setting.sizes.num_patches
    count, least, most = options.mask_count, options.mask_min_block, options.mask_max_block
    count = max(1, round(patches * masked_share)) if count is None else count
    least = max(1, round(patches * block_share)) if least is None else least
    if not 0 < count < patches:
        raise UsageError(f"mask_count must be between 1 and {patches - 1} here, got {count}")
    for name, value in (("mask_min_block", least), ("mask_max_block", most)):
        if value is not None and not 0 < value <= patches:
            raise UsageError(f"{name} must be between 1 and {patches} here, got {value}")
    return BlockMaskField(setting.sizes.grid, count, least, most)
