"""Packs the Open Clipart drawings into the shards beside this file: `python pack.py DRAWINGS`.

DRAWINGS holds train/CLASS/*.jpg and val/CLASS/*.jpg, made from the PNG files of the Debian package
openclipart-png, composited on white. Every drawing is stored as WebP with its longest side at most
192 pixels, so that the 2,154 drawings and their names take less than 5 MB. The result is the same
bytes for the same input and libraries.
"""

import gzip
import io
import sys
import tarfile
from pathlib import Path

from PIL import Image

LONGEST_SIDE, QUALITY = 192, 64


def encode(path: Path) -> bytes:
    image = Image.open(path).convert("RGB")
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=6)
    return buffer.getvalue()


def pack(drawings: Path, split: str, target: Path) -> int:
    """Writes `target` and returns how many drawings it holds."""
    paths = sorted((drawings / split).glob("*/*"))
    with (
        open(target, "wb") as file,
        gzip.GzipFile("", "wb", 9, file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for path in paths:
            data = encode(path)
            member = tarfile.TarInfo(f"{path.parent.name}/{path.stem}.webp")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return len(paths)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    here = Path(__file__).parent
    for split in ("train", "val"):
        target = here / f"{split}-000000.tar.gz"
        count = pack(Path(sys.argv[1]), split, target)
        sys.stdout.write(f"{target}: {count} drawings, {target.stat().st_size:,} bytes\n")
