"""Map-style datasets of torch, of Hugging Face, or of anyone's own, as a source."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from eva_fast.data.decode.formats import arrays_are_images
from eva_fast.data.sources.base import Item, Picture, Source
from eva_fast.errors import UsageError


class DatasetSource(Source):
    """Any object with `__len__` and `__getitem__`, whose items are

    - a dict with an "image", and beside it whatever is known of the image, by name;
    - a tuple that begins with an image, its second part being the label; or
    - an image alone.

    An image is a Pillow image, encoded bytes, or a uint8 tensor or array [3, H, W], [1, H, W] or
    [H, W] (arrays also [H, W, 3]); of a run with other than three channels, an array or tensor as
    `decode/bands.py` reads them. The dataset's `targets`, where it has them, are the labels, and
    its `classes` name labels that are numbers.
    """

    def __init__(self, dataset: Any):
        self.dataset = dataset
        self._targets = getattr(dataset, "targets", None)
        self._classes = getattr(dataset, "classes", None)
        self.knows_labels = self._targets is not None
        if not len(dataset):
            raise UsageError(f"no image found: the dataset {type(dataset).__name__} is empty")
        self.item(0)

    def __len__(self) -> int:
        return len(self.dataset)

    def item(self, number: int) -> Item:
        given = self.dataset[number]
        if isinstance(given, Mapping):
            item = Item(given)
        elif isinstance(given, (tuple, list)) and given:
            item = Item(zip(("image", "label"), given))
        else:
            item = Item(image=given)
        item["image"] = self._picture(item.get("image"))
        label = item.get("label") if self._targets is None else self._targets[number]
        item["label"] = self._named(label)
        return item

    def _picture(self, given: Any) -> Picture:
        if arrays_are_images() and isinstance(given, (np.ndarray, torch.Tensor)):
            return given
        if isinstance(given, np.ndarray) and given.dtype == np.uint8:
            if given.ndim == 3 and given.shape[2] in (1, 3) and given.shape[0] not in (1, 3):
                given = np.moveaxis(given, 2, 0)
            given = torch.from_numpy(np.ascontiguousarray(given))
        if isinstance(given, (bytearray, memoryview)):
            given = bytes(given)
        if isinstance(given, (bytes, Image.Image)):
            return given
        if isinstance(given, torch.Tensor) and given.dtype == torch.uint8:
            return given
        got = f"{given.dtype} " if isinstance(given, (torch.Tensor, np.ndarray)) else ""
        raise TypeError(
            f"an item of the dataset {type(self.dataset).__name__} must be a PIL image, encoded "
            'bytes or a uint8 tensor [3, H, W], a tuple that begins with one, or a dict with an "image"'
            f"; got {got}{type(given).__name__}. Leave the dataset's own transform (ToTensor, "
            "Normalize) away: cropping and normalisation happen here."
        )

    def name(self, number: int) -> str:
        return f"{type(self.dataset).__name__}[{number}]"

    def label(self, number: int) -> str | None:
        if self._targets is None:
            return super().label(number)
        label = self._named(self._targets[number])
        return None if label is None else str(label)

    def classes(self) -> list[str]:
        return super().classes() if self._classes is None else [str(c) for c in self._classes]

    def _named(self, label: Any) -> Any:
        """A label that is a number: the name of that class where the dataset has names, else an int."""
        if isinstance(label, torch.Tensor):
            label = label.numpy()
        if isinstance(label, (np.ndarray, np.generic)) and label.size == 1:
            label = label.item()
        if isinstance(label, int) and self._classes is not None and label < len(self._classes):
            label = self._classes[label]
        return label
