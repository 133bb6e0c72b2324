"""The record of unreadable images, kept by several processes, and when a run stops."""

import json
import multiprocessing
import os

import pytest

from eva_fast.data.loader.bad_images import BadImages


def write(path, start):
    record = BadImages(path, 0.05, 1000)
    for number in range(start, start + 60):
        record.record(number, f"picture {number}", "noise")


def test_ranks_share_a_record(tmp_path):
    path = tmp_path / "deep" / "bad_images.jsonl"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write, args=(path, 20 * rank)) for rank in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    ids = [json.loads(line)["id"] for line in path.read_text().splitlines()]
    assert sorted(ids) == list(range(120))


def test_names_that_are_not_unicode(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    for _ in range(2):  # the second time it is read from the file
        BadImages(tmp_path / "bad.jsonl", 0.05, 1000).record(1, name, f"{name}: noise")
    (line,) = (tmp_path / "bad.jsonl").read_text().splitlines()
    assert json.loads(line)["name"] == name


@pytest.mark.parametrize(
    ("tried", "bad", "stops"),
    [
        (99, 99, False),  # too few to judge
        (100, 9, False),  # 5 are expected, 9.4 are two standard deviations more
        (100, 10, True),
        (10_000, 543, False),
        (10_000, 544, True),
        (40_000, 2_000, False),  # a whole epoch is judged exactly
        (40_000, 2_001, True),
    ],
)
def test_when_a_run_stops(tried, bad, stops):
    record = BadImages(None, 0.05, 40_000)
    if stops:
        with pytest.raises(RuntimeError, match=f"{bad} of {tried}"):
            record.add(0, tried, bad)
    else:
        record.add(0, tried, bad)


def test_epochs_are_judged_apart():
    record = BadImages(None, 0.05, 1000)
    for epoch in range(20):
        record.add(epoch, 1000, 49)
    with pytest.raises(RuntimeError):
        record.add(20, 1000, 51)


def test_a_limit_of_zero_stops_at_the_first():
    record = BadImages(None, 0.0, 1000)
    record.add(0, 500, 0)
    with pytest.raises(RuntimeError, match="1 of 501"):
        record.add(0, 1, 1)


def test_an_image_counts_once_wherever_it_lies(tmp_path):
    """Data that moved has other names for the same numbers."""
    for root in ("/old", "/new"):
        record = BadImages(tmp_path / "bad.jsonl", 0.05, 1000)
        for number in (3, 7):
            record.record(number, f"{root}/{number}.jpg", "noise")
        assert record.count == 2
    assert len((tmp_path / "bad.jsonl").read_text().splitlines()) == 2
