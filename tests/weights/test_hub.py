"""Weights by name: what is downloaded, and the one error where nothing can be."""

import shutil
import urllib.request

import pytest
import torch

from eva_fast.weights import hub, read
from tests.weights.test_folder import in_shards, tensors


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A folder that stands for a repository at Hugging Face, and an empty cache."""
    library = pytest.importorskip("huggingface_hub")
    remote, cache = tmp_path / "remote", tmp_path / "cache"
    remote.mkdir()
    cache.mkdir()

    class Api:
        def list_repo_files(self, name):
            return sorted(p.name for p in remote.iterdir())

    def download(name, filename):
        return shutil.copy(remote / filename, cache / filename)

    def not_cached(*_, **__):
        raise OSError("not cached")

    monkeypatch.setattr(library, "HfApi", Api)
    monkeypatch.setattr(library, "hf_hub_download", download)
    monkeypatch.setattr(library, "snapshot_download", not_cached)
    monkeypatch.setattr(hub, "require_online", lambda *_: None)
    return remote


@pytest.mark.parametrize("stem, suffix", [("model", ".safetensors"), ("pytorch_model", ".bin")])
def test_every_shard_of_an_index_is_fetched(repository, stem, suffix):
    in_shards(repository, stem, suffix)
    (repository / "config.json").write_text("{}")
    (repository / "README.md").write_text("")
    folder = hub.hub_folder("org/name", "hf/org/name")
    assert {p.name for p in folder.iterdir()} == {
        p.name for p in repository.iterdir() if p.name != "README.md"
    }
    found = read(folder)
    assert all(torch.equal(found[name], value) for name, value in tensors().items())


def test_a_repository_without_weights(repository):
    (repository / "flax_model.msgpack").write_text("")
    with pytest.raises(ValueError, match=r"hf/org/name.*org/name has none of open_clip_model"):
        hub.hub_folder("org/name", "hf/org/name")


def test_failed_download():
    """Whatever a library raises becomes one error with a way out."""

    def fail():
        raise RuntimeError("404\nlong story")

    with pytest.raises(
        ValueError, match=r"'hf/a/b' could not be downloaded \(404\); check the name"
    ):
        hub.fetch(fail, "hf/a/b")


def test_offline(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network in this test")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(ValueError, match=r"x is not cached .*no network in this test"):
        hub.require_online("https://example.org", "hf/a/b", "x")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        hub.require_online("https://example.org", "hf/a/b", "x")


def test_a_missing_library():
    with pytest.raises(
        ValueError, match="'x/y' needs the library of-nobody: pip install of-nobody"
    ):
        hub.library("nobody_has_this", "of-nobody", "x/y")
