"""Features of labelled images, in one pass over them."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eva_fast.data import BandsField, Field, ImageField, Source, Subset, TextField, build_loader
from eva_fast.data.decode.limits import MAX_MEGAPIXELS
from eva_fast.data.loader.loader import Loader
from eva_fast.data.loader.maker import Bad
from eva_fast.errors import UsageError
from eva_fast.evaluation.splits import Split
from eva_fast.files import cpu_count

log = logging.getLogger(__name__)
PIXELS = 8  # side of the pixel baseline

Extractor = Callable[[Tensor], Tensor]
"""uint8 images [B,3,S,S], or normalised floats of other channels, -> features [B,D]."""
NAMED = 5
"""Images that are left out and named in the log; the others are counted."""
FIRST = 8
"""Images of each source that are read first, to see whether any can be."""
Bands = tuple[tuple[float, ...], tuple[float, ...]]


def student_features(model: nn.Module) -> Extractor:
    """The mean of the tokens that `model.forward_features` gives behind its CLS token, if it has one."""
    first: int = getattr(model, "prefix_tokens", 1)
    return lambda images: model.forward_features(images)[:, first:].float().mean(1)  # type: ignore


def pixel_features(images: Tensor) -> Tensor:
    """The image at 8x8 pixels."""
    values = images if images.is_floating_point() else images.float() / 255
    small = F.interpolate(
        values, (PIXELS, PIXELS), mode="bicubic", antialias=True, align_corners=False
    )
    return small.flatten(1)


@dataclass(frozen=True)
class Features:
    """What the extractors gave for the images of a source that could be read, in its order."""

    numbers: list[int]
    """The images' numbers in the source."""
    labels: list[str]
    """What the items say; "" where an item has no label."""
    values: dict[str, Tensor]
    """float32 [n,D] of each extractor, on the CPU."""

    def of(self, split: Split) -> tuple[dict[str, Tensor], Tensor]:
        """The features of a split's images, and their classes, int64 [n]."""
        place = {number: row for row, number in enumerate(self.numbers)}
        kept = [(place[n], label) for n, label in zip(split.numbers, split.labels) if n in place]
        if not kept:
            raise UsageError(f"none of the {len(split)} images could be read")
        rows, labels = zip(*kept)
        return {name: rest[list(rows)] for name, rest in self.values.items()}, torch.tensor(labels)


@torch.inference_mode()
def extract(
    source: Source,
    extractors: Mapping[str, Extractor],
    size: int,
    batch_size: int,
    device: torch.device,
    numbers: Sequence[int] | None = None,
    max_megapixels: float = MAX_MEGAPIXELS,
    bands: Bands | None = None,
) -> Features:
    """Features of the images `numbers` of a source, by default of all: the largest centred square,
    resized to `size` with an antialiased bicubic filter. Images that are unreadable, or of more
    million pixels than `max_megapixels`, are left out and logged, the first few by name. bands:
    (mean, std) of images with other than three channels."""
    numbers = range(len(source)) if numbers is None else numbers
    bad: list[Bad] = []
    loader = _reader(source, numbers, size, batch_size, device, max_megapixels, bands, bad.append)
    found: dict[str, list[Tensor]] = {name: [] for name in extractors}
    kept: list[int] = []
    labels: list[str] = []
    with loader:
        for batch in loader:
            kept += [numbers[position] for position in batch.ids.tolist()]
            labels += batch.label.texts()
            for name, extractor in extractors.items():
                found[name].append(extractor(batch.images).float().cpu())
    for one in bad[:NAMED]:
        log.warning("left out %s: %s", one.name, one.reason)
    if len(bad) > NAMED:
        log.warning("left out %d more images that could not be read", len(bad) - NAMED)
    if not kept:
        why = f": {bad[0].name}: {bad[0].reason}" if bad else ""
        raise UsageError(f"none of the {len(numbers)} images could be read{why}")
    return Features(kept, labels, {name: torch.cat(rows) for name, rows in found.items()})


def check_readable(
    sources: Sequence[Source], what: str, max_megapixels: float, bands: Bands | None
) -> None:
    """UsageError, with the first one's reason, where none of the first images of a source can be read:
    before hours of work. what: how they are named in it."""
    for source in sources:
        first, cpu = range(min(FIRST, len(source))), torch.device("cpu")
        bad: list[Bad] = []
        with _reader(
            source, first, PIXELS, FIRST, cpu, max_megapixels, bands, bad.append
        ) as loader:
            if not any(len(batch) for batch in loader) and bad:
                raise UsageError(
                    f"{what}: of the first {len(first)} images none can be read: {bad[0].name}: "
                    f"{bad[0].reason}"
                )


def _reader(
    source: Source, numbers: Sequence[int], size: int, batch_size: int, device: torch.device,
    max_megapixels: float, bands: Bands | None, on_bad: Callable[[Bad], None],
) -> Loader:  # fmt: skip
    """Those images of a source once, in order, with their labels."""
    image: Field = (
        ImageField.centred(size, max_megapixels=max_megapixels)
        if bands is None
        else BandsField.centred(*bands, size, max_megapixels=max_megapixels)
    )
    return build_loader(
        Subset(source, numbers),
        [image, TextField("label", missing="")],
        batch_size=batch_size,
        order="once",
        workers=min(cpu_count(), len(numbers) // 16),
        device=device,
        max_bad_fraction=1.0,
        on_bad=on_bad,
    )
