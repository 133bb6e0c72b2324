"""What a run has drawn, made small enough for a page that carries its pictures inside."""

import base64
import io
import logging
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from eva_fast.files import RUN_PICTURES, read_file

log = logging.getLogger(__name__)
FRAMES = 40
"""Pictures in a page, of all runs together."""
WIDTH, HEIGHT = 1000, 1600
MOST_BYTES = 64 << 20
MOST_PIXELS = 60_000_000
_STEP = re.compile(r"step_(\d{1,15})\.png")


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a run, ready for an <img>."""

    step: int
    uri: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Pictures:
    """Those of a run that a page shows, oldest first."""

    shown: tuple[Picture, ...]
    there: int
    """How many the run has drawn."""
    unreadable: tuple[str, ...]


def read_pictures(folder: Path, last_step: int | None, most: int) -> Pictures:
    """At most `most` of a run's pictures, evenly over its steps with the first and the last. last_step:
    of the one that it draws at its end; None where nobody knows."""
    drawn, final = (folder / name for name in RUN_PICTURES)
    found = {
        int(m[1]): path for path in drawn.glob("step_*.png") if (m := _STEP.fullmatch(path.name))
    }
    if final.is_file():
        found.setdefault(max(last_step or 0, max(found, default=0)), final)
    steps = sorted(found)
    shown, unreadable = [], []
    for step in _evenly(steps, most):
        try:
            shown.append(_picture(step, found[step]))
        except Exception as error:  # Pillow raises whatever its decoders do
            log.debug("%s: %s", found[step], error)
            unreadable.append(found[step].name)
    return Pictures(tuple(shown), len(steps), tuple(unreadable))


def _evenly(steps: Sequence[int], most: int) -> list[int]:
    if len(steps) <= most:
        return list(steps)
    return [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]


def _picture(step: int, path: Path) -> Picture:
    data = read_file(path, MOST_BYTES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image: Image.Image = Image.open(io.BytesIO(data), formats=["PNG"])
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels")
    image = image.convert("RGB")
    image.thumbnail((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    written = io.BytesIO()
    image.save(written, "WEBP", quality=80, method=4)
    code = base64.b64encode(written.getvalue()).decode()
    return Picture(step, f"data:image/webp;base64,{code}", image.width, image.height)


__all__ = ["FRAMES", "Picture", "Pictures", "read_pictures"]
