"""What a source of images is, and the sources made of other objects: mixes and torch datasets."""

import bisect
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from eva_fast.data.loader.order import Part
from eva_fast.errors import UsageError

Picture = bytes | Image.Image | torch.Tensor


class Source:
    """Images by number. Subclasses read them from folders, lists, shards, torch datasets.

    A source is read by several processes: what it opens, it opens on first use.
    """

    def __len__(self) -> int:
        raise TypeError(f"{type(self).__name__} has no length")

    def read(self, number: int) -> Picture:
        """Image `number` in [0, len): encoded bytes, a Pillow image or a uint8 tensor [3, H, W].

        Raises OSError where it cannot be read.
        """
        raise TypeError(f"{type(self).__name__} cannot be read by number")

    def name(self, number: int) -> str:
        """Where image `number` lies, for a person to find it."""
        raise TypeError(f"{type(self).__name__} has no names")

    def label(self, number: int) -> str | None:
        """The class of image `number`: its folder's name; None where it has none."""
        return None

    def parts(self) -> list[Part]:
        """How an epoch draws from the source; one part, each image once, unless it is a mix."""
        return [Part(0, len(self), len(self))]


class MixedSource(Source):
    """Several sources as one; image numbers follow on from each other.

    Without weights an epoch holds every image once. With weights an epoch has as many samples as
    the sources have images together, and each source supplies its share of them: a source that has
    more images than its share goes on in the next epoch, one that has fewer is repeated (in another
    view, that is another crop). A source that is a mix itself keeps its own weights within its share.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float] | None = None):
        if not sources:
            raise UsageError("a list of data sources must not be empty")
        if weights is not None and (min(weights) <= 0 or len(weights) != len(sources)):
            raise UsageError(f"every source of a mix needs a weight above 0, got {list(weights)}")
        self.sources = list(sources)
        self.weights = list(weights) if weights is not None else None
        self._ends = list(itertools.accumulate(len(source) for source in sources))

    def __len__(self) -> int:
        return self._ends[-1]

    def _locate(self, number: int) -> tuple[Source, int]:
        which = bisect.bisect_right(self._ends, number)
        return self.sources[which], number - (self._ends[which - 1] if which else 0)

    def read(self, number: int) -> Picture:
        source, inside = self._locate(number)
        return source.read(inside)

    def name(self, number: int) -> str:
        source, inside = self._locate(number)
        return source.name(inside)

    def label(self, number: int) -> str | None:
        source, inside = self._locate(number)
        return source.label(inside)

    def parts(self) -> list[Part]:
        """Each source's share of an epoch, divided further where the source is a mix itself."""
        inner = [source.parts() for source in self.sources]
        weights = self.weights
        if weights is None:
            if all(part.draws == part.length for parts in inner for part in parts):
                return super().parts()
            weights = [float(len(source)) for source in self.sources]
        shares, starts, found = _divide(len(self), weights), [0, *self._ends[:-1]], []
        for start, share, parts in zip(starts, shares, inner):
            draws = _divide(share, [part.draws for part in parts])
            found += [Part(start + p.start, p.length, n) for p, n in zip(parts, draws)]
        return found


def _divide(total: int, weights: Sequence[float]) -> list[int]:
    """`total` in whole numbers proportional to `weights`, that add up to it."""
    bounds = np.rint(np.cumsum([0.0, *weights]) / sum(weights) * total)
    return np.diff(bounds).astype(int).tolist()


class DatasetSource(Source):
    """A map-style torch dataset: its items are an image, or a tuple that begins with one.

    An image is a Pillow image, encoded bytes, or a uint8 tensor or array [3, H, W], [1, H, W] or
    [H, W] (arrays also [H, W, 3]).
    """

    def __init__(self, dataset: Any):
        self.dataset = dataset
        if not len(dataset):
            raise UsageError(f"no image found: the dataset {type(dataset).__name__} is empty")
        self._picture(dataset[0])

    def __len__(self) -> int:
        return len(self.dataset)

    def _picture(self, item: Any) -> Picture:
        if isinstance(item, (tuple, list)) and item:
            item = item[0]
        if isinstance(item, np.ndarray) and item.dtype == np.uint8:
            if item.ndim == 3 and item.shape[2] in (1, 3) and item.shape[0] not in (1, 3):
                item = np.moveaxis(item, 2, 0)
            item = torch.from_numpy(np.ascontiguousarray(item))
        if isinstance(item, (bytearray, memoryview)):
            item = bytes(item)
        if isinstance(item, (bytes, Image.Image)):
            return item
        if isinstance(item, torch.Tensor) and item.dtype == torch.uint8:
            return item
        got = f"{item.dtype} " if isinstance(item, (torch.Tensor, np.ndarray)) else ""
        raise TypeError(
            f"an item of the dataset {type(self.dataset).__name__} must be a PIL image, encoded "
            f"bytes or a uint8 tensor [3, H, W], or a tuple that begins with one; got {got}"
            f"{type(item).__name__}. Leave the dataset's own transform (ToTensor, Normalize) away: "
            "cropping and normalisation happen here."
        )

    def read(self, number: int) -> Picture:
        return self._picture(self.dataset[number])

    def name(self, number: int) -> str:
        return f"{type(self.dataset).__name__}[{number}]"

    def label(self, number: int) -> str | None:
        labels = getattr(self.dataset, "targets", None)
        label = labels[number] if labels is not None else self._item_label(number)
        if isinstance(label, torch.Tensor) and label.numel() == 1:
            label = label.item()
        classes = getattr(self.dataset, "classes", None)
        if isinstance(label, int) and classes is not None and label < len(classes):
            label = classes[label]
        return None if label is None else str(label)

    def _item_label(self, number: int) -> Any:
        item = self.dataset[number]
        return item[1] if isinstance(item, (tuple, list)) and len(item) > 1 else None
