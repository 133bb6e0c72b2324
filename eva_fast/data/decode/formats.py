"""Which files are images, by their suffix: what this Pillow reads, and what installed plugins add."""

import contextlib
import functools
import importlib
import importlib.util
import logging
from collections.abc import Iterator

from PIL import Image

log = logging.getLogger(__name__)

# Pillow opens more (PDF, HDF5, icons, ...), but what ends in one of these is meant as a picture.
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm",
    ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".mpo", ".apng", ".dib", ".j2k", ".j2c", ".jpc", ".jpf",
    ".jpx", ".tga", ".qoi", ".pcx",
)  # fmt: skip

ARRAYS = (".npy",)
_arrays = False

# Plugins that add formats to Pillow, and their function that does it where importing them does not.
_PLUGINS = {"pillow_heif": "register_heif_opener", "pillow_avif": "", "pillow_jxl": ""}


@functools.cache
def use_plugins() -> None:
    """Lets Pillow open what the plugins on this machine read, in this process."""
    for module, function in _PLUGINS.items():
        if importlib.util.find_spec(module) is None:
            continue
        try:
            plugin = importlib.import_module(module)
            if function:
                getattr(plugin, function)()
        except (
            Exception
        ) as error:  # a plugin that does not fit this Pillow says nothing of the rest
            log.warning("%s cannot be used: %s", module, error)


def image_suffixes() -> tuple[str, ...]:
    """Suffixes, in lower case, of the files that can be read here: those of `SUFFIXES` that this
    Pillow was built with, and all that came from outside it (`Image.register_extension`)."""
    use_plugins()
    found = _suffixes(len(Image.registered_extensions()))
    return (*found, *ARRAYS) if arrays_are_images() else found


def arrays_are_images() -> bool:
    """Whether arrays count as images: where a run reads other than three channels of 8 bits."""
    return _arrays


@contextlib.contextmanager
def reading_arrays(enable: bool = True) -> Iterator[None]:
    """Whether arrays count as images meanwhile, in this process and those that it forks."""
    global _arrays
    before, _arrays = _arrays, enable
    try:
        yield
    finally:
        _arrays = before


@functools.lru_cache(maxsize=1)
def _suffixes(registered: int) -> tuple[str, ...]:
    known = Image.registered_extensions()
    ours = tuple(suffix for suffix in SUFFIXES if suffix in known)
    return ours + tuple(sorted(s for s in known if s not in ours and _from_outside(known[s])))


def _from_outside(form: str) -> bool:
    """Whether a format is opened by a plugin that is no part of Pillow."""
    opener = Image.OPEN.get(form)
    module = getattr(opener[0], "__module__", None) if opener else "PIL"
    return not str(module).startswith("PIL.") and opener is not None
