"""The class of an image, as a number."""

from collections.abc import Sequence

import numpy as np

from eva_fast.data.decode.pillow import BadImage
from eva_fast.data.samples.fields import Field, wanted
from eva_fast.data.sources.base import Item


class LabelField(Field):
    """`item["label"]` as int64 [].

    Arguments:
        classes: the classes' names, a class's number being its place (`Source.classes`). Without
            it labels must be numbers.
        missing: number for images without a label; without it they count as unreadable.
        name, key: of the field and of the item's entry.
    """

    def __init__(
        self,
        classes: Sequence[str] | None = None,
        *,
        missing: int | None = None,
        name: str = "label",
        key: str = "label",
    ):
        super().__init__(name, np.int64)
        self.classes = classes
        self.missing = missing
        self.key = key
        self._numbers = {label: number for number, label in enumerate(classes or ())}

    def make(self, item: Item, seed: int, out: np.ndarray) -> None:
        if self.missing is not None and item.get(self.key) is None:
            out[...] = self.missing
            return
        label = wanted(item, self.key)
        if isinstance(label, str):
            if label not in self._numbers:
                raise BadImage(
                    f"its label is the name {label!r}, and no classes are given"
                    if self.classes is None
                    else f"its label {label!r} is none of the {len(self.classes)} classes"
                )
            out[...] = self._numbers[label]
            return
        number = int(label)
        if self.classes is not None and not 0 <= number < len(self.classes):
            raise BadImage(
                f"its label {number} is not below {len(self.classes)}, the classes' number"
            )
        out[...] = number
