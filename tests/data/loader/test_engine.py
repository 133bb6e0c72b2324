"""Copies of batches to a GPU: each is waited for, and its slot not refilled under it."""

import contextlib
import time

import numpy as np
import pytest
import torch

from eva_fast.data import BlockMaskField, Field, ImageField
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


@pytest.mark.parametrize("workers", [0, 2])
def test_once_with_bad_images_and_ragged_fields(monkeypatch, workers):
    source = Memory(50, bad={0, 3, 4, 20, *range(30, 36), 49})
    fields = [ImageField(28), BlockMaskField((2, 2), 2, 1), Numbers(), Numbers("kept", False)]
    options = dict(fields=fields, order="once", max_bad_fraction=1.0, workers=workers)
    with build(source, **options) as loader:
        expected = list(loader)
    Driver(monkeypatch)
    with build(source, **options, device="cuda") as loader:
        for _ in range(2):
            batches = list(loader)
            assert same([plain(b) for b in batches], [plain(b) for b in expected])
            for batch, other in zip(batches, expected):
                for name in ("numbers", "kept"):
                    assert torch.equal(batch[name].values, other[name].values)
                    assert torch.equal(batch[name].offsets, other[name].offsets)


class Numbers(Field):
    """As many ones as the file has bytes modulo four."""

    def __init__(self, name="numbers", on_device=True):
        super().__init__(name, np.int16, most=3, on_device=on_device)

    def make(self, item, seed, out):
        out[:] = 1
        return len(item.image) % 4


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
