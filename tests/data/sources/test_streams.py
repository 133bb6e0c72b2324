"""Shards read in sequence: no repeats or gaps, the same order for any workers, resume mid-shard."""

import contextlib
import io
import itertools
import json
import tarfile

import pytest

from eva_fast.data import open_source
from eva_fast.data.loader.shardstream import ShardStream
from eva_fast.data.sources import streams
from eva_fast.data.sources.streams import StreamSource, read_shard
from tests.data.batches import ids_of, same, take
from tests.data.pictures import encoded, write_folder, write_shard


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr("eva_fast.data.sources.streams.PAUSE_SECONDS", 0)


SIZES = [9, 14, 5, 12, 7]  # uneven on purpose


@pytest.fixture
def pattern(tmp_path):
    """Five shards that hold 47 pictures together."""
    start = 0
    for shard, size in enumerate(SIZES):
        write_shard(tmp_path / f"s-{shard}.tar", range(start, start + size))
        start += size
    return f"{tmp_path}/s-{{0..4}}.tar"


@pytest.mark.parametrize("form", ["pipe:cat {}", "file://{}"], ids=["pipe", "fsspec"])
def test_each_image_once_an_epoch_in_an_order_that_changes(pattern, form):
    source = open_source(form.format(pattern))
    assert isinstance(source, StreamSource) and len(source) == 9 * 5  # by the first shard
    source.window = 10
    batches, _ = take(source, 16)
    ids = ids_of(batches)
    first, second = ids[:47], ids[47:94]
    assert len(set(first)) == 47 and set(first) == set(second)
    assert first != second and first != sorted(first)
    assert {i & 0xFFFFFF for i in first} == set(range(14))  # numbers within shards


def test_neighbours_come_from_different_shards(pattern):
    source = open_source(f"pipe:cat {pattern}")
    ids = ids_of(take(source, 4)[0])
    changes = sum((a >> 24) != (b >> 24) for a, b in itertools.pairwise(ids))
    assert changes > len(ids) / 2


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(pattern, workers):
    source = open_source(f"pipe:cat {pattern}")
    source.window = 8
    expected, states = take(source, 12, batch_size=20)
    batches, their_states = take(source, 12, batch_size=20, workers=workers)
    assert same(batches, expected) and their_states == states


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_in_the_middle_of_a_shard(pattern, workers):
    source = open_source(f"pipe:cat {pattern}")
    source.window = 8
    expected, states = take(source, 18, workers=1)
    for stop in (1, 3, 7, 8, 13):
        batches, _ = take(source, 4, states[stop - 1], workers=workers)
        assert same(batches, expected[stop : stop + 4])


@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_share_an_epoch_without_repeats_or_gaps(pattern, world):
    source = open_source(f"pipe:cat {pattern}")
    source.window = 8
    seen = []
    for rank in range(world):
        running = iter(ShardStream(source, 0, rank, world))
        sample = next(running)
        while sample.view == 0:
            seen.append(sample.image_id)
            sample = next(running)
        running.close()
    assert len(seen) == 47 and len(set(seen)) == 47


def test_a_state_belongs_to_a_rank(pattern):
    source = open_source(f"pipe:cat {pattern}")
    _, states = take(source, 2, rank=0, world=2)
    with pytest.raises(ValueError, match="rank 0, this run has 1"):
        take(source, 1, states[0], rank=1, world=2)


def test_mix_of_streams_and_files_by_weight(pattern, tmp_path):
    folder = write_folder(tmp_path / "files", 30, start=100)
    source = open_source([(f"pipe:cat {pattern}", 0.25), (folder, 0.75)])
    expected, states = take(source, 20)
    ids = ids_of(expected)
    assert sum(i >> 48 == 1 for i in ids) == 90  # of 120
    assert len(set(ids[:40])) == 40
    batches, _ = take(source, 20, workers=2)
    assert same(batches, expected)
    batches, _ = take(source, 5, states[10], workers=2)
    assert same(batches, expected[11:16])


def test_bad_images_take_the_next_of_their_group(tmp_path):
    write_shard(tmp_path / "s.tar", range(40))
    raw = bytearray((tmp_path / "s.tar").read_bytes())
    with tarfile.open(tmp_path / "s.tar") as tar:
        member = tar.getmember("kind1/00007.jpg")
    raw[member.offset_data : member.offset_data + member.size] = b"\0" * member.size
    (tmp_path / "s.tar").write_bytes(raw)
    source = open_source(f"pipe:cat {tmp_path}/s.tar")
    record = tmp_path / "bad.jsonl"
    settings = dict(bad_images=record, max_bad_fraction=0.2)
    expected, _ = take(source, 13, **settings)
    (line,) = map(json.loads, record.read_text().splitlines())
    assert line["name"].endswith("s.tar/kind1/00007.jpg") and line["id"] == 7
    assert 7 not in ids_of(expected)
    batches, _ = take(source, 13, workers=2, **settings)
    assert same(batches, expected) and len(record.read_text().splitlines()) == 1


def test_a_shard_that_breaks_later_stops_the_run_by_name(tmp_path):
    write_shard(tmp_path / "s-0.tar", range(5))
    path = write_shard(tmp_path / "s-1.tar", range(5, 30))
    path.write_bytes(path.read_bytes()[:20_000])
    source = open_source(f"pipe:cat {tmp_path}/s-{{0..1}}.tar")
    for workers, error in ((0, ValueError), (2, RuntimeError)):
        with pytest.raises(error, match=r"s-1\.tar is not a whole tar file"):
            take(source, 10, workers=workers)


class PayloadError(Exception):
    """As fsspec's file systems have them: no OSError."""


class Breaking(io.BytesIO):
    """A file whose connection breaks after `limit` bytes."""

    def __init__(self, data, limit, error):
        super().__init__(data)
        self.limit, self.error = limit, error

    def read(self, size=-1):
        if self.tell() + size > self.limit:
            raise self.error("gone")
        return super().read(size)


@pytest.mark.parametrize("error", [ConnectionResetError, PayloadError])
def test_reading_goes_on_after_a_broken_connection(tmp_path, monkeypatch, error):
    """The first two readers break down after some pictures; a third time is too often."""
    path = write_shard(tmp_path / "s.tar", range(12))
    limits = [5_000, 16_000, 1 << 30]

    @contextlib.contextmanager
    def flaky(shard):
        assert shard == f"file://{path}"
        yield Breaking(path.read_bytes(), limits.pop(0), error)

    monkeypatch.setattr(streams, "open_stream", flaky)
    read = list(read_shard(f"file://{path}"))
    assert [number for number, _, _ in read] == list(range(12))
    assert all(data == encoded(number) for number, _, data in read)
    assert not limits
    limits[:] = [25_000, 5_000, 5_000]
    with pytest.raises(ValueError, match=r"s\.tar cannot be read: gone"):
        list(read_shard(f"file://{path}"))
    assert not limits


def test_streams_are_not_read_by_number(pattern):
    with pytest.raises(TypeError, match="cannot be read by number"):
        open_source(f"pipe:cat {pattern}").read(0)
