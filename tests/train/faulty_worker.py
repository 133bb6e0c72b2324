"""One of the processes of tests/train/test_faults.py: a run in which this rank has a fault."""

import os
import sys
import time

import torch

import eva_fast
from eva_fast.errors import RunError
from eva_fast.objectives.eva import Eva
from eva_fast.teachers.hog import HogTeacher
from eva_fast.train import checkpoint_writer, folder, spikes
from tests.train.several import OPTIONS

KIND, OUT = sys.argv[1:]
RANK, STEP = int(os.environ["RANK"]), 4
LATER = 6  # the checkpoint of step 2 is on disk when that of step 4 begins


def hang():
    """Longer than the others wait; it ends by itself, for torchrun would give it half a minute."""
    time.sleep(20)
    os._exit(3)


class Faulty(Eva):
    """Rank 1 has a fault in the loss of a step, or of many. Each notes what it took part in."""

    seen = 0

    def after_step(self, module, applied):
        with open(f"{OUT}-applied-{RANK}", "a") as file:
            file.write(str(int(applied)))

    def loss(self, module, batch, target):
        loss, metrics = super().loss(module, batch, target)
        Faulty.seen += 1
        if RANK == 1 and KIND == "nan" and Faulty.seen == STEP:
            loss = loss * torch.nan
        if RANK == 1 and KIND == "nans" and STEP <= Faulty.seen < STEP + 10:
            loss = loss * torch.nan
        if RANK == 1 and KIND == "spikes" and (Faulty.seen == 5 or Faulty.seen >= 8):
            loss = loss + 100.0
        if RANK == 1 and KIND == "sleeps" and Faulty.seen == LATER:
            hang()
        if RANK == 1 and KIND == "dies" and Faulty.seen == LATER:
            os._exit(3)
        if RANK == 1 and KIND == "raises" and Faulty.seen == LATER:
            raise RunError("the disk of this machine is gone")
        return loss, metrics


if RANK == 1 and KIND == "nan":  # slow too, where it waits for nobody
    features = HogTeacher.image_features

    def slow(*args):
        time.sleep(0.4)
        return features(*args)

    HogTeacher.image_features = slow

if RANK == 1 and KIND in ("unreadable", "sleeps saving"):  # of step 4: a file a step
    crc32, files = checkpoint_writer.crc32, []

    def second_fails(path):
        files.append(path)
        if len(files) == 2 and KIND == "unreadable":
            raise OSError(5, "Input/output error")
        if len(files) == 2:
            hang()
        return crc32(path)

    checkpoint_writer.crc32 = second_fails
if KIND == "elsewhere":  # each machine has a disk of its own
    folder.SHARED_SECONDS = 0.5
    os.makedirs(f"{OUT}/{RANK}")
    os.chdir(f"{OUT}/{RANK}")
    OUT = "run"

options = {
    **OPTIONS,
    "steps": 24 if KIND in ("nans", "spikes") else 8,
    "checkpoint_every": 2,
    "keep_checkpoints": 9,
}
spikes.STEPS = 4
minutes = 0.1 if KIND.startswith("sleeps") else 5.0
eva_fast.pretrain(objective=Faulty(), out=OUT, process_minutes=minutes, **options)
if KIND == "again":  # as torchrun starts both when one of another machine had died
    if RANK == 1:
        os.environ["TORCHELASTIC_RESTART_COUNT"] = "1"
    eva_fast.pretrain(objective=Faulty(), out=OUT, process_minutes=minutes, **options)
