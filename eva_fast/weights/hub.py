"""Weights by name: the caches and download services of open_clip, Hugging Face and torchvision.

Files are only fetched; they are read by `reader.py`. What is cached needs no network. `asked` is
the name that somebody gave, for errors.
"""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from eva_fast.errors import UsageError, first_line
from eva_fast.libraries import library, unknown
from eva_fast.weights.folder import INDEX, WEIGHT_FILES, shards
from eva_fast.weights.hints import open_clip_hints
from eva_fast.weights.reader import Weights, read

_SIDE_FILES = ("config.json", "open_clip_config.json", "preprocessor_config.json")


def hub_folder(repository: str, asked: str, filename: str | None = None) -> Path:
    """Local folder of a Hugging Face repository: cached, else downloaded (weights and configs)."""
    hub = library("huggingface_hub", "huggingface_hub", asked)
    wanted = (filename,) if filename else WEIGHT_FILES
    try:
        folder = Path(hub.snapshot_download(repository, local_files_only=True))
        if any((folder / name).is_file() for name in wanted):
            return folder
    except Exception:  # not cached: the library has several errors for that
        folder = None
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    require_online(endpoint, asked, f"Hugging Face repository {repository}")

    def download() -> Path:
        files = hub.HfApi().list_repo_files(repository)
        names = [name for name in wanted if name in files][:1]
        if not names:
            raise UsageError(f"repository {repository} has none of {', '.join(wanted)}")
        path = Path(hub.hf_hub_download(repository, names[0]))
        parts = sorted(set(shards(path).values())) if path.name.endswith(INDEX) else []
        for name in (*parts, *(name for name in _SIDE_FILES if name in files)):
            hub.hf_hub_download(repository, name)
        return path.parent

    return fetch(download, asked)


def fetch(download: Callable[[], Path], asked: str) -> Path:
    """Run a download and turn whatever goes wrong into one error."""
    try:
        return download()
    except Exception as error:
        raise UsageError(
            f"{asked!r} could not be downloaded ({first_line(error)}); check the name and the "
            "network, or give a local weight file"
        ) from error


def require_online(url: str, asked: str, what: str) -> None:
    """Fail within seconds where there is no network; the libraries retry for a minute."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    reason = "HF_HUB_OFFLINE is set"
    if not offline:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=10).close()
            return
        except urllib.error.HTTPError:
            return  # somebody answered
        except OSError as error:
            reason = str(getattr(error, "reason", error))
    raise UsageError(
        f"{asked!r}: {what} is not cached on this machine and cannot be reached "
        f"({reason}); give a local weight file"
    )


def open_clip_weights(name: str, tag: str, asked: str) -> tuple[Weights, dict[str, Any]]:
    """Weights of an open_clip model and tag, with what its configuration says (see `hints.py`)."""
    open_clip = library("open_clip", "open_clip_torch", asked)
    model_config = open_clip.get_model_config(name)
    if model_config is None:
        raise unknown("open_clip model", name, open_clip.list_models())
    config = open_clip.get_pretrained_cfg(name, tag)
    if not config:
        raise unknown(f"weights of {name}", tag, open_clip.list_pretrained_tags_by_model(name))
    quick = config.get("quick_gelu", model_config.get("quick_gelu", False))
    try:
        hints = open_clip_hints(
            {"model_cfg": {**model_config, "quick_gelu": quick}, "preprocess_cfg": config}
        )
    except ValueError as error:
        raise UsageError(f"{asked!r}: {error}") from error
    cache = Path("~/.cache/clip").expanduser()
    url = config.get("url", "")
    if url and (cached := cache / url.rpartition("/")[2]).is_file():
        return read(cached), hints
    if repository := config.get("hf_hub"):
        parts = repository.strip("/").split("/")
        folder = hub_folder("/".join(parts[:2]), asked, "/".join(parts[2:]) or None)
        return read(folder / parts[2] if parts[2:] else folder), hints
    require_online(url, asked, url)
    path = fetch(lambda: Path(open_clip.download_pretrained(config, prefer_hf_hub=False)), asked)
    return read(path), hints


def torchvision_weights(name: str, entry: str | None, asked: str) -> tuple[Weights, int]:
    """Weights of a torchvision model (its default ones, or a named entry) and their image size."""
    entries = library("torchvision", "torchvision", asked).models.get_model_weights(name)
    if entry and entry not in entries.__members__:
        raise unknown(f"weights of torchvision model {name}", entry, entries.__members__)
    chosen = entries[entry] if entry else entries.DEFAULT
    path = Path(torch.hub.get_dir()) / "checkpoints" / chosen.url.rpartition("/")[2]
    if not path.is_file():
        require_online(chosen.url, asked, chosen.url)

        def download() -> Path:
            path.parent.mkdir(parents=True, exist_ok=True)
            prefix = path.stem.rpartition("-")[2]
            torch.hub.download_url_to_file(chosen.url, str(path), prefix, progress=False)
            return path

        fetch(download, asked)
    return read(path), chosen.transforms().crop_size[0]
