"""`open_source`: whatever a person calls their data, as a `Source`."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from eva_fast.data.decode.formats import image_suffixes
from eva_fast.data.sources.base import Source
from eva_fast.data.sources.builtin import open_builtin
from eva_fast.data.sources.dataset import DatasetSource
from eva_fast.data.sources.folder import require_images, walk_folder
from eva_fast.data.sources.list import PathSource, open_list
from eva_fast.data.sources.mixed import MixedSource
from eva_fast.data.sources.shards import as_file, open_shards
from eva_fast.data.sources.tar import expand_braces, is_shard
from eva_fast.errors import MissingFileError, UsageError

KINDS = """data can be
  a folder of images, nested or flat           /data/images
  a text file with a path a line               /data/list.txt
  tar shards, with braces or *                 '/data/shard-{000000..000123}.tar'
  images or folders, with braces or *          '/data/2024-*', '/data/*.jpg'
  shards read as streams                       's3://bucket/{00..99}.tar', 'pipe:cat shard-{0..9}.tar'
  the drawings that come with eva_fast         builtin
  a list or iterator of images' paths          sorted(Path("/data").rglob("*.jpg"))
  several of these, with weights if you like   '/data/a:0.7,/data/b:0.3' or [("/data/a", 0.7), ...]
  a map-style dataset: its items are an image, (image, label) or {"image": ..., ...}"""

_WEIGHTED = re.compile(r"^(?P<data>.+):(?P<weight>\d+(\.\d*)?|\.\d+)$")
_URL = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]+://|^[A-Za-z][A-Za-z0-9+.-]+::")


def open_source(data: Any, split: str = "train") -> Source:
    """Opens images for training or evaluation; see `KINDS` for what `data` can be.

    Arguments:
        data: a path, URL, `pipe:` command or "builtin"; a map-style dataset (`DatasetSource`); a
            Source; or a list of these or of (these, weight). One string may list several,
            separated by commas, each with `:weight` behind it if weights are wanted.
        split: "train" or "val", for "builtin"; other sources are taken as they are.

    Raises FileNotFoundError for what does not exist, ValueError for what holds no image or cannot
    be read as shards, TypeError for other objects.
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, (str, os.PathLike)):
        return _open_text(os.fspath(data), split)
    if isinstance(data, (list, tuple)):
        return _open_list(list(data), split)
    paths = _paths(data)
    if paths is not None:
        return PathSource(paths)
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, dict):
        return DatasetSource(data)
    if hasattr(data, "__iter__") and not isinstance(data, dict):
        raise TypeError(
            f"{type(data).__name__} can only be iterated: a torch dataset must be map-style "
            "(__getitem__ and __len__), so that a run can be resumed in the same order"
        )
    raise TypeError(f"cannot read images from a {type(data).__name__}; {KINDS}")


def _open_list(items: list[Any], split: str) -> Source:
    if items and all(map(_is_image_path, items)):
        return PathSource(items)
    pairs = [item if _is_weighted(item) else (item, None) for item in items]
    return _mix([(open_source(data, split), None if w is None else float(w)) for data, w in pairs])


def _paths(data: Any) -> list[Any] | None:
    """The paths of images that an array, a table's column or an iterator such as `Path.glob` gives;
    None where it gives something else, of which an iterator has then lost the first."""
    if isinstance(data, Iterator):
        first = next(data, None)
        return [first, *data] if _is_image_path(first) else None
    if callable(getattr(data, "tolist", None)) and len(data) and np.ndim(data) == 1:
        items = data.tolist()
        return items if all(map(_is_image_path, items)) else None
    return None


def _is_image_path(item: Any) -> bool:
    """Whether an item of a list is the path of an image, not a folder, a list or shards."""
    return isinstance(item, (str, os.PathLike)) and os.fspath(item).lower().endswith(
        image_suffixes()
    )


def _is_weighted(item: Any) -> bool:
    return (
        isinstance(item, (tuple, list))
        and len(item) == 2
        and not isinstance(item[1], (str, bool))
        and hasattr(item[1], "__float__")
        and np.ndim(item[1]) == 0  # NumPy's and torch's numbers too
    )


def _mix(pairs: list[tuple[Source, float | None]]) -> Source:
    weights = [weight for _, weight in pairs if weight is not None]
    if weights and len(weights) != len(pairs):
        raise UsageError("either every source of a mix has a weight, or none has")
    if len(pairs) == 1 and not weights:
        return pairs[0][0]
    return MixedSource([source for source, _ in pairs], weights or None)


def _open_text(text: str, split: str) -> Source:
    if not text.strip():
        raise UsageError(f"no data given; {KINDS}")
    text = os.path.expanduser(text)
    if os.path.exists(text):
        return _open_path(Path(text), split)
    if text.startswith("pipe:"):  # a command may hold commas and colons of its own
        return open_shards(expand_braces(text))
    parts = _split_outside_braces(text)
    weighted = [_WEIGHTED.match(part) for part in parts]
    if len(parts) > 1 or weighted[0]:
        return _mix(
            [
                (open_source(match["data"], split), float(match["weight"]))
                if match
                else (open_source(part, split), None)
                for part, match in zip(parts, weighted)
            ]
        )
    if text == "builtin":
        return open_builtin(split)
    names = expand_braces(text)
    if _URL.match(text):
        return open_shards(names)
    if names != [text] or re.search(r"[*?\[]", text):
        return _open_found([as_file(name) for name in _glob(names)], split)
    raise MissingFileError(f"{text} does not exist; {KINDS}")


def _open_path(path: Path, split: str) -> Source:
    if path.is_dir():
        return _open_folder(path)
    if is_shard(path.name):
        return open_shards([as_file(str(path))])
    if path.suffix.lower() in (".txt", ".lst", ".list"):
        return open_list(path)
    raise UsageError(f"{path} is neither a folder, nor a .tar shard, nor a .txt list; {KINDS}")


def _open_folder(path: Path) -> Source:
    """The images below `path`; where there is none, the tar shards in it. A download that was left
    beside its images is no shard, a preview beside shards no data: of both kinds there must be more
    images."""
    images = walk_folder(path)
    shards = sorted(as_file(str(p)) for p in path.iterdir() if is_shard(p.name))
    if shards and not len(images):
        return open_shards(shards)
    if shards and len(images) <= len(shards):
        raise UsageError(
            f"{path} holds {len(images)} images and {len(shards)} tar files, and only one of them can "
            f"be meant: '{path}/*.tar' reads the shards, a text file of paths the images"
        )
    return require_images(images)


def _open_found(names: list[str], split: str) -> Source:
    """What braces or a pattern name: images, folders of them, or tar shards."""
    if all(map(_is_image_path, names)):
        return PathSource(names)
    if all(map(os.path.isdir, names)):
        return _mix([(_open_path(Path(name), split), None) for name in names])
    return open_shards(names)


def _glob(names: list[str]) -> list[str]:
    import glob

    found: list[str] = []
    for name in names:
        if re.search(r"[*?\[]", name):
            matches = sorted(glob.glob(name, recursive=True))
            if not matches:
                raise MissingFileError(f"no file matches {name}")
            found += matches
        else:
            found.append(name)
    return found


def _split_outside_braces(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for i, letter in enumerate(text):
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    parts.append(text[start:])
    if not all(part.strip() for part in parts):
        raise UsageError(f"an empty name in the list of data sources {text!r}")
    return [part.strip() for part in parts]
