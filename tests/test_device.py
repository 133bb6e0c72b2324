"""Names of devices: what is here is chosen, what is not is an error."""

import pytest
import torch

from eva_fast.device import choose_device, undisturbed


def pretend(monkeypatch, gpus):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


@pytest.mark.parametrize(
    "gpus, name, kind, index",
    [
        (0, "auto", "cpu", None),
        (0, "cpu", "cpu", None),
        (2, "auto", "cuda", None),
        (2, "cpu", "cpu", None),
        (2, "cuda", "cuda", None),
        (2, "cuda:1", "cuda", 1),
    ],
)
def test_devices(monkeypatch, gpus, name, kind, index):
    pretend(monkeypatch, gpus)
    device = choose_device(name)
    assert (device.type, device.index) == (kind, index)


@pytest.mark.parametrize(
    "gpus, name, message",
    [
        (0, "cuda", "sees no NVIDIA GPU"),
        (2, "cuda:2", "there are 2 NVIDIA GPUs"),
        (2, "cuda:x", "must be auto, cpu, cuda or cuda:NUMBER"),
        (2, "tpu", "must be auto, cpu, cuda or cuda:NUMBER"),
        (2, "cpu:1", "must be auto, cpu, cuda or cuda:NUMBER"),
    ],
)
def test_devices_that_are_not_there(monkeypatch, gpus, name, message):
    pretend(monkeypatch, gpus)
    with pytest.raises(ValueError, match=message):
        choose_device(name)


@pytest.mark.parametrize("outside", [False, True])
def test_autocast_inside_a_run_reads_the_weights_of_now(outside):
    layer = torch.nn.Linear(4, 4)
    x = torch.ones(2, 4)
    with torch.autocast("cpu", torch.bfloat16, enabled=outside):
        with undisturbed(torch.device("cpu")):
            assert not torch.is_autocast_enabled("cpu")
            for value in (1.0, 2.0):  # as steps of an optimiser change it
                with torch.no_grad():
                    layer.weight.fill_(value)
                    layer.bias.zero_()
                with torch.autocast("cpu", torch.bfloat16):
                    assert (layer(x) == 4 * value).all()
        assert torch.is_autocast_enabled("cpu") == outside
        assert torch.is_autocast_cache_enabled()
