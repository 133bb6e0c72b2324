"""What a source of images is, and what it gives of each image: an `Item`."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

Picture = bytes | Image.Image | Tensor | np.ndarray


class Item(dict[str, Any]):
    """What a source knows of one image, by name.

    `image` is encoded bytes, a Pillow image or a uint8 tensor [3, H, W]; of runs with other than three
    channels any array of them. Beside it whatever there
    is: `label` (a class's name, or its number), `caption`, `boxes`; None is as good as not there.
    """

    @property
    def image(self) -> Picture:
        return self["image"]


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a mix: images [start, start + length), of which an epoch draws `draws`."""

    start: int
    length: int
    draws: int


class Source:
    """Images by number. A subclass has `__len__`, and `item`, or `read` where there is no more to
    tell than the image (and perhaps a `label`).

    A source is read by several processes: what it opens, it opens on first use.
    """

    knows_labels = False
    """Whether `label` answers without reading the image."""
    left_out: Mapping[str, int] = MappingProxyType({})
    """What lies beside the images and is not read: how many of each suffix, or other kind."""
    names: list[str] | None = None
    """Fingerprints of the images' names, one for each part of a mix; None where they have none."""

    def __len__(self) -> int:
        raise TypeError(f"{type(self).__name__} has no length")

    def item(self, number: int) -> Item:
        """Image `number` in [0, len) and what is known of it.

        Whatever it raises says why this image cannot be read.
        """
        return Item(image=self.read(number), label=self.label(number))

    def read(self, number: int) -> Picture:
        """Image `number` alone."""
        if type(self).item is Source.item:
            raise TypeError(f"{type(self).__name__} cannot be read by number")
        return self.item(number).image

    def name(self, number: int) -> str:
        """Where image `number` lies, for a person to find it."""
        return f"{type(self).__name__}[{number}]"

    def label(self, number: int) -> str | None:
        """The class of image `number`, such as its folder's name; None where it has none."""
        if type(self).item is Source.item:
            return None
        label = self.item(number).get("label")
        return None if label is None else str(label)

    def classes(self) -> list[str]:
        """The names of the classes; a class's number is its place here. Sorted, unless the source
        has an order of its own. Empty where no image has a label."""
        return sorted({label for n in range(len(self)) if (label := self.label(n)) is not None})

    def parts(self) -> list[Part]:
        """How an epoch draws from the source; one part, each image once, unless it is a mix."""
        return [Part(0, len(self), len(self))]


class Numbers(Protocol):
    """A list, an array, a range; or what works its numbers out where they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> int: ...


class Subset(Source):
    """Some images of a source, by their numbers there, in the order given."""

    def __init__(self, source: Source, numbers: Numbers):
        self.source = source
        self.numbers = numbers
        self.knows_labels = source.knows_labels

    def __len__(self) -> int:
        return len(self.numbers)

    def item(self, number: int) -> Item:
        return self.source.item(int(self.numbers[number]))

    def name(self, number: int) -> str:
        return self.source.name(int(self.numbers[number]))

    def label(self, number: int) -> str | None:
        return self.source.label(int(self.numbers[number]))
