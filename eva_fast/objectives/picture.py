"""The picture a person looks at to see whether a run learns.

`save_columns` draws any images side by side. `save_picture` is that of objectives which predict a
teacher's features. One row an image; columns: the image, the image as the student sees it (masked
patches grey), the teacher's features and the student's prediction as colours. A colour is a patch's
coordinates on the three main directions (PCA) of the teacher's features of these images, so that
equal colours in the last two columns mean that the prediction points where the teacher does.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from eva_fast.files import atomic_write

CELL = 208  # smallest side of a drawn image in pixels
GAP = 10
INK, PAPER, FRAME, GREY = (40, 40, 40), (255, 255, 255), (205, 205, 205), (150, 150, 150)
FADE = 0.72  # how far visible patches of the prediction go towards white: the loss skips them
TITLES = ("image", "masked image", "teacher", "student's prediction")


def save_columns(
    path: str | Path,
    columns: Mapping[str, Tensor | np.ndarray],
    notes: Sequence[str] = (),
    notes_title: str = "",
) -> None:
    """Writes images side by side as PNG, whole or not at all: a row an image, a titled column each.

    Args:
        path: where it goes; missing folders are made.
        columns: {title: uint8 images}, tensors [n,3,S,S] or arrays [n,S,S,3], all the same n.
        notes: a word beside each row, with a title of their own.
    """
    images = {
        title: visible(c).permute(0, 2, 3, 1).cpu().numpy() if isinstance(c, Tensor) else c
        for title, c in columns.items()
    }
    rows = len(next(iter(images.values())))
    cell = cell_side(max(c.shape[1] for c in images.values()))
    font, small = ImageFont.load_default(18), ImageFont.load_default(14)
    head, note = 34, 76
    right = len(images) * (cell + GAP) + GAP
    canvas = Image.new("RGB", (right + note, head + rows * (cell + GAP)), PAPER)
    draw = ImageDraw.Draw(canvas)
    for column, (title, cells) in enumerate(images.items()):
        left = GAP + column * (cell + GAP)
        draw.text((left + cell / 2 - draw.textlength(title, font) / 2, 7), title, INK, font)
        for row, pixels in enumerate(cells):
            top = head + row * (cell + GAP)
            canvas.paste(_resized(pixels, cell), (left, top))
            draw.rectangle((left - 1, top - 1, left + cell, top + cell), outline=FRAME)
    draw.text((right, 9 - 9 * notes_title.count("\n")), notes_title, INK, small)
    for row, text in enumerate(notes):
        middle = head + row * (cell + GAP) + cell / 2
        draw.text((right, middle - 9 - 11 * text.count("\n")), text, INK, font)
    with atomic_write(path) as draft:
        canvas.save(draft, format="PNG", optimize=True)


def save_picture(
    path: str | Path,
    images: Tensor,
    mask: Tensor,
    teacher: Tensor,
    prediction: Tensor,
    grid: tuple[int, int],
) -> None:
    """Writes images, masked images, and two kinds of features of their patches as colours.

    Args:
        path: where it goes; missing folders are made.
        images: uint8 [n,3,S,S], the crops, or float of any channels (`visible`).
        mask: int [n,K], indices of the masked patches in 0..N-1 (or bool [n,N]).
        teacher: float [n,N,C], the teacher's features of every patch.
        prediction: float [n,N,C], the student's of every patch, from the masked image.
        grid: patches down and across, N = h * w.

    The features are L2-normalised first, since the loss is their cosine. The number beside a row
    is the mean cosine over its masked patches; the one in brackets is what the best constant for
    all masked patches of the picture scores there. Values that are not finite are drawn as zeros.
    """
    images = visible(images)
    _check(images, mask, teacher, prediction, grid)
    masked = _masked(mask, grid)
    t = F.normalize(torch.nan_to_num(teacher.detach().float().cpu(), posinf=0, neginf=0), dim=-1)
    p = F.normalize(torch.nan_to_num(prediction.detach().float().cpu(), posinf=0, neginf=0), dim=-1)
    cosine = (t * p).sum(-1).numpy()
    cell = cell_side(images.shape[-1])
    pixels = images.cpu().permute(0, 2, 3, 1).numpy()
    shown = np.stack([np.asarray(_resized(image, cell)) for image in pixels])
    hidden = np.stack([_enlarge(m, cell) for m in masked])[..., None]
    known, predicted = (
        np.stack([_enlarge(c.reshape(*grid, 3), cell) for c in colours])
        for colours in pca_colours(t, p)
    )
    inside = masked.reshape(len(images), -1)
    columns = (
        shown,
        np.where(hidden, np.array(GREY, np.uint8), shown),
        known,
        _faded(predicted, hidden),
    )
    rows = t.numpy()[inside]
    constant = rows.sum(0) / max(float(np.linalg.norm(rows.sum(0))), 1e-12)
    notes = [
        f"{c[m].mean():+.2f}\n({(r[m] @ constant).mean():+.2f})" if m.any() else ""
        for c, m, r in zip(cosine, inside, t.numpy())
    ]
    save_columns(path, dict(zip(TITLES, columns)), notes, "cosine\n(constant)")


def visible(images: Tensor) -> Tensor:
    """uint8 [n,3,S,S] of images of any channels: bytes as they are; of float [n,C,S,S] the first three,
    or one as grey, or two as red and green, each stretched from its darkest to its brightest percent."""
    if images.dtype == torch.uint8 or not images.is_floating_point():
        return images
    return as_bytes(images, of=images)[0]


def as_bytes(*pictures: Tensor, of: Tensor) -> list[Tensor]:
    """`visible` of several floats [n,C,S,S], all stretched as the images `of` are."""
    flat = _colours(of).transpose(0, 1).flatten(1)
    low, high = torch.quantile(flat, torch.tensor([0.01, 0.99]), dim=1)[:, :, None, None]
    span = torch.where(high > low, high - low, torch.ones_like(high))
    units = [torch.nan_to_num((_colours(picture) - low) / span) for picture in pictures]
    return [(unit.clamp(0, 1) * 255).round().to(torch.uint8) for unit in units]


def _colours(images: Tensor) -> Tensor:
    """float32 [n,3,S,S] on the CPU: nan where there is no third channel."""
    shown = images[:, :3].float().cpu()
    if shown.shape[1] == 1:
        return shown.expand(-1, 3, -1, -1)
    if shown.shape[1] == 2:
        return torch.cat((shown, torch.full_like(shown[:, :1], torch.nan)), dim=1)
    return shown


def cell_side(side: int) -> int:
    """Side in pixels at which images of `side` pixels are drawn."""
    return side * max(1, -(-CELL // side))


def _resized(pixels: np.ndarray, cell: int) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return (
        image
        if image.size == (cell, cell)
        else image.resize((cell, cell), Image.Resampling.BICUBIC)
    )


def _check(images, mask, teacher, prediction, grid) -> None:
    n, patches = len(images), grid[0] * grid[1]
    square = images.ndim == 4 and images.shape[1] == 3 and images.shape[2] == images.shape[3]
    if images.dtype != torch.uint8 or not square or n == 0:
        raise ValueError(
            f"images must be uint8 [n,3,S,S] with n >= 1, got {images.dtype} {tuple(images.shape)}"
        )
    if mask.ndim != 2 or len(mask) != n:
        raise ValueError(f"mask must have {n} rows of patch indices, got {tuple(mask.shape)}")
    if teacher.shape != prediction.shape or teacher.shape[:2] != (n, patches) or teacher.ndim != 3:
        raise ValueError(
            f"teacher and prediction must both be [{n},{patches},C] for grid {tuple(grid)}, got "
            f"{tuple(teacher.shape)} and {tuple(prediction.shape)}"
        )


def _masked(mask: Tensor, grid: tuple[int, int]) -> np.ndarray:
    """bool [n,h,w] from indices [n,K] or bool [n,N]."""
    patches = grid[0] * grid[1]
    flags = mask.cpu()
    if flags.dtype != torch.bool:
        if flags.numel() and not 0 <= int(flags.min()) <= int(flags.max()) < patches:
            raise ValueError(f"mask holds indices outside 0..{patches - 1}")
        flags = torch.zeros(len(mask), patches, dtype=torch.bool).scatter_(1, flags.long(), True)
    return flags.view(-1, *grid).numpy()


def pca_colours(teacher: Tensor, prediction: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors [n,N,C] of both -> uint8 [n,N,3]; basis and scale from the teacher's alone."""
    rows = teacher.flatten(0, 1).double()
    mean = rows.mean(0)
    _, _, basis = torch.linalg.svd(rows - mean, full_matrices=False)
    basis = basis[:3]
    # A singular vector's sign is arbitrary: fix it, so that pictures of one run can be compared.
    largest = basis.gather(1, basis.abs().argmax(1, keepdim=True))
    basis = basis * torch.where(largest < 0, -1.0, 1.0)
    basis = F.pad(basis, (0, 0, 0, 3 - len(basis)))
    known = (rows - mean) @ basis.T
    low, high = torch.quantile(known, torch.tensor([0.02, 0.98]).double(), dim=0)
    width = torch.where(high - low > 1e-9, high - low, torch.ones_like(high))
    middle = (low + high) / 2

    def colours(features: Tensor) -> np.ndarray:
        unit = ((features.double() - mean) @ basis.T - middle) / width + 0.5
        return (unit.clamp(0, 1) * 255).round().to(torch.uint8).numpy()

    return colours(teacher), colours(prediction)


def _enlarge(grid_values: np.ndarray, side: int) -> np.ndarray:
    """[h,w,...] -> [side,side,...], each patch a flat square."""
    height, width = grid_values.shape[:2]
    down, across = np.arange(side) * height // side, np.arange(side) * width // side
    return grid_values[down][:, across]


def _faded(pixels: np.ndarray, keep: np.ndarray) -> np.ndarray:
    faint = (255 - (255 - pixels.astype(np.float32)) * (1 - FADE)).astype(np.uint8)
    return np.where(keep, pixels, faint)
