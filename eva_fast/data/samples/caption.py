"""Text of an image, as UTF-8 bytes: tokenising is the model's business."""

from typing import Any

import numpy as np

from eva_fast.data.samples.fields import Field, wanted
from eva_fast.data.samples.seeds import MASK64, mix64
from eva_fast.data.sources.base import Item

STREAM = 0x63617074696F6E73  # sets the choice of a caption apart from crop and mask


class TextField(Field):
    """`item[key]`, str or UTF-8 bytes, as a ragged field of uint8; it stays on the CPU.

    What is longer than `most` bytes is cut, between characters. Items without text get `missing`
    or, where that is None, count as unreadable. `Ragged.texts` gives the text back.
    """

    def __init__(
        self, name: str, *, key: str | None = None, most: int = 1024, missing: str | None = None
    ):
        super().__init__(name, np.uint8, most=most, on_device=False)
        self.key = key or name
        self.missing = missing

    def make(self, item: Item, seed: int, out: np.ndarray) -> int:
        text = self.missing
        if text is None or item.get(self.key) is not None:
            text = self.choose(wanted(item, self.key), seed)
        raw = text if isinstance(text, bytes) else str(text).encode(errors="surrogateescape")
        if len(raw) > len(out):
            raw = raw[: len(out)].decode(errors="ignore").encode()
        out[: len(raw)] = np.frombuffer(raw, np.uint8)
        return len(raw)

    def choose(self, given: Any, seed: int) -> Any:
        return given


class CaptionField(TextField):
    """The caption; of several (a list), the one that the sample's seed draws."""

    def __init__(self, name: str = "caption", **options: Any):
        super().__init__(name, **options)

    def choose(self, given: Any, seed: int) -> Any:
        if isinstance(given, (list, tuple)) and given:
            return given[mix64((seed ^ STREAM) & MASK64) % len(given)]
        return given
