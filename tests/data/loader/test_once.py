"""Each image once: in order, a short last batch, bad images left out and told, any workers."""

import json

import pytest
import torch

from eva_fast.data import ImageField, Subset, open_source
from eva_fast.data.loader.maker import Bad
from tests.data.batches import Memory, build, ids_of, plain, same
from tests.data.pictures import write_folder, write_shard


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def once(source, **changes):
    """(batches, bad images) of one way through."""
    bad = []
    with build(source, order="once", on_bad=bad.append, max_bad_fraction=1.0, **changes) as loader:
        return [plain(batch) for batch in loader], bad


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_each_image_once_in_order(workers):
    batches, bad = once(Memory(45), workers=workers, batch_size=20)
    assert ids_of(batches) == list(range(45)) and not bad
    assert [len(batch[0]) for batch in batches] == [20, 20, 5]
    assert all((views == 0).all() for _, _, _, views in batches)
    whole, _ = once(Memory(45), batch_size=45)
    assert same([tuple(map(torch.cat, zip(*batches)))], whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_left_out_and_told_in_order(workers):
    bad = {0, 3, *range(12, 18), 44}
    batches, met = once(Memory(45, bad), workers=workers)
    assert ids_of(batches) == [n for n in range(45) if n not in bad]
    assert len(batches) == 7  # of eight one holds bad images only
    assert [found.image_id for found in met] == sorted(bad)
    assert met[1] == Bad(3, "picture 3", "not an image in a format that Pillow reads")
    good, _ = once(Memory(45))
    for batch, part in ((batches[0], [1, 2, 4, 5]), (batches[1], list(range(6)))):
        expected = good[0] if batch is batches[0] else good[1]
        assert same([batch], [tuple(values[part] for values in expected)])
    assert once(Memory(3, {0, 1, 2}), workers=workers)[0] == []


def test_more_than_the_bearable_share_stops_it():
    with (
        build(Memory(40, {1, 2, 3, 4}), order="once") as loader,
        pytest.raises(RuntimeError, match="4 of 40 images could not be read"),
    ):
        list(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_it_ends_begins_anew_and_resumes(workers):
    with build(Memory(20), order="once", workers=workers) as loader:
        assert loader.batches_per_epoch == 4
        first, states = [], []
        for batch in loader:
            first.append(plain(batch))
            states.append(json.loads(json.dumps(loader.state_dict())))
        assert loader.worker_pids == [] and next(loader, None) is None
        assert same([plain(batch) for batch in loader], first)
        loader.load_state_dict(states[1])
        assert same([plain(batch) for batch in loader], first[2:])
    with build(Memory(21), order="once") as loader, pytest.raises(ValueError, match="images 20"):
        loader.load_state_dict(states[0])
    with build(Memory(20)) as loader, pytest.raises(ValueError, match="kind 'once'"):
        loader.load_state_dict(states[0])


@pytest.mark.parametrize("count", [36, 40, 37, 3])
def test_ranks_share_it(count):
    parts = [
        once(Memory(count), rank=rank, world=3, batch_size=2, workers=rank)[0] for rank in range(3)
    ]
    assert sorted(i for part in parts for i in ids_of(part)) == list(range(count))
    joined = [tuple(map(torch.cat, zip(*batches))) for batches in zip(*parts)]
    assert same(joined, once(Memory(count))[0][: len(joined)])


def test_the_first_images_only_and_some_images():
    assert ids_of(once(Memory(45), limit=13)[0]) == list(range(13))
    assert len(ids_of(once(Memory(5), limit=13)[0])) == 5
    source = Memory(45)
    batches, _ = once(Subset(source, [7, 3, 30]), fields=[ImageField.centred(28)])
    assert ids_of(batches) == [0, 1, 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_streams_and_mixes_with_them(tmp_path, workers):
    for shard, numbers in enumerate((range(9), range(9, 23), range(23, 28))):
        write_shard(tmp_path / f"s-{shard}.tar", numbers)
    folder = write_folder(tmp_path / "files", 11, start=100)
    stream = f"pipe:cat {tmp_path}/s-{{0..2}}.tar"
    batches, _ = once(open_source(stream), workers=workers)
    ids = ids_of(batches)
    assert len(set(ids)) == len(ids) == 28 and [len(b[0]) for b in batches] == [6, 6, 6, 6, 4]
    source = open_source([stream, folder])
    batches, _ = once(source, workers=workers)
    ids = ids_of(batches)
    assert len(set(ids)) == len(ids) == 39 and [i - (1 << 48) for i in ids[28:]] == list(range(11))
    assert ids_of(once(source, workers=workers, limit=4)[0])[4:] == ids[28:32]
    with build(source, order="once", workers=workers) as loader:
        next(loader), next(loader)
        state = json.loads(json.dumps(loader.state_dict()))
    with build(source, order="once", workers=workers) as loader:
        loader.load_state_dict(state)
        assert same([plain(batch) for batch in loader], batches[2:])
    parts = [once(source, rank=rank, world=2)[0] for rank in range(2)]
    assert sorted(i for part in parts for i in ids_of(part)) == sorted(ids)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(order="random"), "order must be one of shuffled, once"),
        (dict(limit=3), 'needs order="once"'),
        (dict(order="once", limit=0), "limit must be at least 1"),
    ],
)
def test_wrong_settings_are_explained(changes, words):
    with pytest.raises(ValueError, match=words):
        build(Memory(20), **changes)
