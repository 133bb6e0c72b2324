"""Images a second on one core, from the bytes of a JPEG to the training sample.

    python -m bench.test_input

The plain way is what EVA-01's loader does: Pillow decodes the whole file, two bicubic crops of the
same box (one for the student, one for the teacher), two conversions to normalised floats, and a
mask drawn by a Python loop. Ours is `Cropper` and `BlockMasker`: one uint8 crop and the mask's
indices; the normalisation happens on the device.

The files are about 500x375 pixels and 100 KB, random crops of real photographs; the same pictures
as progressive JPEGs, of which every coefficient has to be read first, are timed too. The ways take
turns file by file, on one thread, and are charged the CPU time they take, so that other work on the
machine counts little; a rate is of the median time, a ratio the median of the ratios within a pair.
"""

import io
import math
import random
import statistics
import time

import numpy as np
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional

from bench.photos import encode, jpegs
from eva_fast import native
from eva_fast.data import BlockMasker, Cropper

SIZE, GRID, COUNT, MIN_BLOCK = 224, 16, 105, 16
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = transforms.InterpolationMode.BICUBIC

cropper = Cropper(SIZE)
masker = BlockMasker((GRID, GRID), COUNT, MIN_BLOCK)
to_tensor = transforms.ToTensor()
normalize = transforms.Normalize(CLIP_MEAN, CLIP_STD)


def ours(data: bytes, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """uint8 crop [3, 224, 224] and mask indices int32 [105]."""
    return cropper(data, seed), masker.indices(np.array([seed], dtype=np.uint64))[0]


def plain(data: bytes, seed: int) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Float crops [3, 224, 224] for student and teacher, mask [16, 16]. The box is ours, so that
    both ways do the same work."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    box = cropper.box(image.width, image.height, seed)
    views = []
    for _ in range(2):
        view = functional.resized_crop(
            image, box.top, box.left, box.height, box.width, (SIZE, SIZE), BICUBIC
        )
        views.append(functional.hflip(view) if box.flip else view)
    student, teacher = (normalize(to_tensor(view)) for view in views)
    return student, teacher, mask_by_loop(random.Random(seed))


def mask_by_loop(draw: random.Random) -> np.ndarray:
    """A block-wise mask of at most 105 patches, patch by patch."""
    mask = np.zeros((GRID, GRID), dtype=int)
    masked, failures = 0, 0
    while masked < COUNT and failures < 10:
        wanted = COUNT - masked
        area = draw.uniform(MIN_BLOCK, wanted)
        aspect = math.exp(draw.uniform(math.log(0.3), math.log(1 / 0.3)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        failures += 1
        if height >= GRID or width >= GRID:
            continue
        top, left = draw.randint(0, GRID - height), draw.randint(0, GRID - width)
        fresh = height * width - mask[top : top + height, left : left + width].sum()
        if not 0 < fresh <= wanted:
            continue
        for y in range(top, top + height):
            for x in range(left, left + width):
                if mask[y, x] == 0:
                    mask[y, x] = 1
                    masked += 1
        failures = 0
    return mask


def seconds(way, data: bytes, seed: int) -> float:
    start = time.thread_time()
    way(data, seed)
    return time.thread_time() - start


def compare(files: list[bytes], rounds: int = 5) -> dict[str, float]:
    """Rates of both ways in images a second, and the median ratio of a pair's times."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for data in files[:5]:
            plain(data, 0), ours(data, 0)
        pairs = [
            (seconds(plain, data, i + 1000 * k), seconds(ours, data, i + 1000 * k))
            for k in range(rounds)
            for i, data in enumerate(files)
        ]
    finally:
        torch.set_num_threads(threads)
    return {
        "plain": 1 / statistics.median(p for p, _ in pairs),
        "ours": 1 / statistics.median(o for _, o in pairs),
        "ratio": statistics.median(p / o for p, o in pairs),
    }


def same_crops(files: list[bytes]) -> float:
    """Largest mean difference of the two ways' crops, in levels of 255."""
    mean, std = torch.tensor(CLIP_MEAN).view(3, 1, 1), torch.tensor(CLIP_STD).view(3, 1, 1)
    worst = 0.0
    for seed, data in enumerate(files):
        theirs = (plain(data, seed)[0] * std + mean) * 255
        worst = max(worst, float((theirs - torch.from_numpy(ours(data, seed)[0])).abs().mean()))
    return worst


def test_input() -> None:
    """The two ways agree; their rates are printed."""
    main()


def main() -> None:
    files = jpegs(60)
    progressive = [
        encode(Image.open(io.BytesIO(data)), quality=92, progressive=True) for data in files
    ]
    print(f"native library: {'yes' if native.available() else 'no'}")
    for name, group in (("sequential", files), ("progressive", progressive)):
        worst = same_crops(group)
        assert worst < 2, f"crops differ by {worst:.2f} levels on average"
        result = compare(group)
        print(
            f"{name} JPEG, {statistics.mean(map(len, group)) / 1000:.0f} KB: "
            f"plain {result['plain']:.0f} images/s, ours {result['ours']:.0f} images/s, "
            f"{result['ratio']:.2f} times; mean difference at most {worst:.2f} of 255"
        )


if __name__ == "__main__":
    main()
