"""Weights by name: the caches and download services of open_clip, Hugging Face and torchvision.

Files are only fetched; they are read by `weights.py`. What is cached needs no network.
"""

from __future__ import annotations

import difflib
import importlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from eva_fast.errors import MissingFileError, UsageError
from eva_fast.teachers.hints import open_clip_hints
from eva_fast.teachers.weights import Weights, read_weights

# In order of preference: open_clip's files come with the kind of GELU, safetensors load lazily.
WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
)
_SIDE_FILES = ("config.json", "open_clip_config.json", "preprocessor_config.json")


def library(name: str, package: str, teacher: str) -> Any:
    """Import an optional library, or say how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"teacher {teacher!r} needs the library {package}: pip install {package}; or give a "
            "local weight file"
        ) from error


def unknown(kind: str, name: str, known: Iterable[str]) -> ValueError:
    """The error for a name that a library does not know, with the nearest ones it does."""
    names = sorted(set(known))
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.4) or names[:8]
    return ValueError(f"unknown {kind} {name!r}; for example: {', '.join(near)}")


def read_folder(folder: Path) -> Weights:
    """The weights of a folder as Hugging Face, open_clip or timm save it (also in shards)."""
    path = next((folder / n for n in WEIGHT_FILES if (folder / n).is_file()), None)
    if path is None:
        others = sorted(
            p for p in folder.iterdir() if p.suffix in (".safetensors", ".pt", ".pth", ".bin")
        )
        if len(others) != 1:
            found = ", ".join(p.name for p in others) or "no weight file"
            raise MissingFileError(
                f"teacher folder {folder} holds {found}; expected one weight file or one of "
                f"{', '.join(WEIGHT_FILES)}"
            )
        path = others[0]
    if path.suffix != ".json":
        return read_weights(path)
    try:
        shards = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError) as error:
        raise UsageError(f"{path} is no index of weight files: {error}") from error
    parts = [read_weights(folder / Path(shard).name) for shard in shards]
    tensors = {name: partial(part.__getitem__, name) for part in parts for name in part}
    return Weights(path, "safetensors", tensors)


def hub_folder(repository: str, teacher: str, filename: str | None = None) -> Path:
    """Local folder of a Hugging Face repository: cached, else downloaded (weights and configs)."""
    hub = library("huggingface_hub", "huggingface_hub", teacher)
    wanted = (filename,) if filename else WEIGHT_FILES
    try:
        folder = Path(hub.snapshot_download(repository, local_files_only=True))
        if any((folder / name).is_file() for name in wanted):
            return folder
    except Exception:  # not cached: the library has several errors for that
        folder = None
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    require_online(endpoint, teacher, f"Hugging Face repository {repository}")

    def download() -> Path:
        files = hub.HfApi().list_repo_files(repository)
        names = [name for name in wanted if name in files][:1]
        if not names:
            raise UsageError(f"repository {repository} has none of {', '.join(wanted)}")
        if names[0].endswith(".index.json"):
            names += [f for f in files if f.startswith("model-") and f.endswith(".safetensors")]
        names += [name for name in _SIDE_FILES if name in files]
        paths = [Path(hub.hf_hub_download(repository, name)) for name in names]
        return paths[0].parent

    return fetch(download, teacher)


def fetch(download: Callable[[], Path], teacher: str) -> Path:
    """Run a download and turn whatever goes wrong into one error."""
    try:
        return download()
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(
            f"teacher {teacher!r} could not be downloaded ({reason}); check the name and the "
            "network, or give a local weight file"
        ) from error


def require_online(url: str, teacher: str, what: str) -> None:
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
        f"teacher {teacher!r}: {what} is not cached on this machine and cannot be reached "
        f"({reason}); give a local weight file, or 'hog', which needs none"
    )


def open_clip_weights(name: str, tag: str, teacher: str) -> tuple[Weights, dict[str, Any]]:
    """Weights of an open_clip model and tag, with what its configuration says (see `hints.py`)."""
    open_clip = library("open_clip", "open_clip_torch", teacher)
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
        raise UsageError(f"teacher {teacher!r}: {error}") from error
    cache = Path("~/.cache/clip").expanduser()
    url = config.get("url", "")
    if url and (cached := cache / url.rpartition("/")[2]).is_file():
        return read_weights(cached), hints
    if repository := config.get("hf_hub"):
        parts = repository.strip("/").split("/")
        folder = hub_folder("/".join(parts[:2]), teacher, "/".join(parts[2:]) or None)
        return (read_weights(folder / parts[2]) if parts[2:] else read_folder(folder)), hints
    require_online(url, teacher, url)
    path = fetch(lambda: Path(open_clip.download_pretrained(config, prefer_hf_hub=False)), teacher)
    return read_weights(path), hints


def torchvision_weights(name: str, entry: str | None, teacher: str) -> tuple[Weights, int]:
    """Weights of a torchvision model (its default ones, or a named entry) and their image size."""
    from torchvision.models import get_model_weights

    entries = get_model_weights(name)
    if entry and entry not in entries.__members__:
        raise unknown(f"weights of torchvision model {name}", entry, entries.__members__)
    chosen = entries[entry] if entry else entries.DEFAULT
    path = Path(torch.hub.get_dir()) / "checkpoints" / chosen.url.rpartition("/")[2]
    if not path.is_file():
        require_online(chosen.url, teacher, chosen.url)

        def download() -> Path:
            path.parent.mkdir(parents=True, exist_ok=True)
            prefix = path.stem.rpartition("-")[2]
            torch.hub.download_url_to_file(chosen.url, str(path), prefix, progress=False)
            return path

        fetch(download, teacher)
    return read_weights(path), chosen.transforms().crop_size[0]
