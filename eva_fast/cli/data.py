"""`eva-fast data check`."""

from pathlib import Path

from eva_fast.cli.words import Name, show
from eva_fast.data.decode.limits import MAX_MEGAPIXELS


def check(
    data: Name,
    limit: int = 10_000,
    image_size: int = 224,
    patch_size: int = 14,
    channels: int = 3,
    max_megapixels: float = MAX_MEGAPIXELS,
    gpu_images_per_second: float | None = None,
    contact_sheet: Path | None = None,
    json: bool = False,
) -> None:
    """Read a data set as training does: counts, sizes, formats, unreadable files, speed.

    Args:
        data: what --data of pretrain takes.
        limit: images to decode, spread by chance; 0 for all.
        image_size: side of the crops that are timed and drawn, in pixels.
        patch_size: side of a patch in pixels.
        channels: of the images, as --channels of pretrain.
        max_megapixels: images of more million pixels count as unreadable, as in training.
        gpu_images_per_second: a training speed, to say how many cores feed it.
        contact_sheet: write a PNG of crops and their masks here.
        json: print JSON instead of tables.
    """
    from eva_fast.data.checking import check as make_check
    from eva_fast.data.checking import render

    found = make_check(
        data, limit=limit or None, image_size=image_size, patch_size=patch_size, channels=channels,
        max_megapixels=max_megapixels, gpu_images_per_second=gpu_images_per_second,
        contact_sheet=contact_sheet,
    )  # fmt: skip
    show(found, None if json else render(found))
