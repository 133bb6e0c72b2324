"""Copies of batches to a GPU: each is waited for, and its slot not refilled under it."""

import contextlib
import time

import pytest
import torch

from tests.data.batches import Memory, build, plain, same, take


class Driver:
    """Stands for CUDA: copies happen as late as they may, when something waits for their event."""

    def __init__(self, monkeypatch):
        self.queued, self.registered = [], 0
        driver = self

        class Event:
            def record(self, stream):
                self.copies, driver.queued = driver.queued, []

            def query(self):
                return not self.copies

            def synchronize(self):
                for target, source in self.copies:
                    target.copy_(source)
                self.copies = []

        class Stream:
            def __init__(self, *_):
                pass

            def wait_event(self, event):
                event.synchronize()

            def synchronize(self):
                pass

        class Runtime:
            def cudaHostRegister(self, address, size, flags):
                driver.registered += 1
                return 0

            def cudaHostUnregister(self, address):
                driver.registered -= 1

        def to(tensor, device, non_blocking):
            assert device.type == "cuda" and non_blocking
            target = torch.full_like(tensor, 99)
            driver.queued.append((target, tensor))
            return target

        current = Stream()
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
        monkeypatch.setattr(torch.cuda, "cudart", Runtime)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
        monkeypatch.setattr(torch.Tensor, "to", to)


@pytest.mark.parametrize("workers", [0, 2])
def test_copies_to_a_gpu_are_waited_for(monkeypatch, workers):
    """A batch used before its copy, or a slot refilled under one, would show wrong pixels."""
    expected, states = take(Memory(50), 20)
    driver = Driver(monkeypatch)
    with build(Memory(50), workers=workers, device="cuda") as loader:
        for number in range(20):
            batch = next(loader)
            assert same([plain(batch)], expected[number : number + 1])
            assert loader.state_dict() == states[number]
            time.sleep(0.02 * (number % 3))  # the workers run ahead
        assert driver.registered == 1
    assert driver.registered == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_batches_on_a_gpu():
    expected, _ = take(Memory(50), 12)
    with build(Memory(50), workers=2, device="cuda") as loader:
        for number in range(12):
            batch = next(loader)
            assert batch.images.is_cuda and batch.mask.is_cuda
            moved = tuple(x.cpu() for x in (batch.images, batch.mask, batch.ids, batch.views))
            assert same([moved], expected[number : number + 1])
