"""Shared fixtures: outputs of the official EVA-01 code, and a small CPU footprint."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open

GOLDEN = Path(__file__).parent / "golden"


def _read(name):
    with safe_open(GOLDEN / name, "pt") as file:
        return {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.fixture(scope="session")
def eva_micro():
    """(tensors, sizes) of the micro student, computed by the official code in float32."""
    tensors, meta = _read("eva_micro.safetensors")
    return tensors, meta


@pytest.fixture(scope="session")
def eva_micro_groups():
    return json.loads((GOLDEN / "eva_micro.param_groups.json").read_text())


@pytest.fixture(scope="session")
def clip_micro():
    """(tensors, sizes) of a micro CLIP image tower in OpenAI's naming."""
    return _read("clip_micro.safetensors")
