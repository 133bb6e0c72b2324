"""Real photographs as JPEG files, from those that scikit-image and scikit-learn bring along."""

import importlib.util
import io
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOGRAPHS = {
    "sklearn": ["datasets/images/china.jpg", "datasets/images/flower.jpg"],
    "skimage": [
        "data/astronaut.png",
        "data/coffee.png",
        "data/chelsea.png",
        "data/rocket.jpg",
        "data/motorcycle_left.png",
        "data/motorcycle_right.png",
        "data/hubble_deep_field.jpg",
        "data/retina.jpg",
        "data/ihc.png",
    ],
}


def photographs() -> list[Image.Image]:
    """Those of the list above that the installed packages contain, as RGB."""
    found = []
    for package, names in PHOTOGRAPHS.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        paths = (Path(spec.origin).parent / name for name in names)
        found += [Image.open(path).convert("RGB") for path in paths if path.exists()]
    if not found:
        raise FileNotFoundError("scikit-image and scikit-learn with their bundled photographs")
    return found


def encode(image: Image.Image, **options) -> bytes:
    """The image as a JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def jpegs(
    count: int, size: tuple[int, int] = (500, 375), size_bytes: int = 100_000, seed: int = 0
) -> list[bytes]:
    """`count` random crops of the photographs, each about `size` pixels and `size_bytes` long.

    The quality is the highest at which a file is at most 5 % longer than wanted.
    """
    draw = np.random.default_rng(seed)
    images = photographs()
    files = []
    for i in range(count):
        image = images[i % len(images)]
        width, height = min(size[0], image.width), min(size[1], image.height)
        left = int(draw.integers(0, image.width - width + 1))
        top = int(draw.integers(0, image.height - height + 1))
        part = image.crop((left, top, left + width, top + height))
        for quality in range(100, 30, -1):
            data = encode(part, quality=quality)
            if len(data) <= 1.05 * size_bytes:
                break
        files.append(data)
    return files
