"""The loader: one order whatever the workers, resume, ranks, mixes, bad images."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from eva_fast.data import BlockMasker, Cropper, open_source, sample_seed
from tests.data.batches import Memory, build, ids_of, plain, same, take
from tests.data.pictures import encoded, write_folder, write_shard


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def test_a_batch_is_what_the_contract_says():
    with build(Memory(20)) as loader:
        batch = next(loader)
        assert batch.images.shape == (6, 3, 28, 28) and batch.images.dtype == torch.uint8
        assert batch.mask.shape == (6, 2) and batch.mask.dtype == torch.int32
        assert batch.ids.shape == (6,) and batch.ids.dtype == torch.int64
        assert (batch.mask[:, 1:] > batch.mask[:, :-1]).all()
        assert loader.batches_per_epoch == 3 and loader.bad_count == 0
        assert loader.wait_seconds > 0


def test_a_sample_is_a_function_of_seed_image_and_view():
    cropper, masker = Cropper(28), BlockMasker((2, 2), 2, 1)
    batches, _ = take(Memory(20), 5)
    for images, mask, ids, views in batches:
        for image, indices, image_id, view in zip(images, mask, ids.tolist(), views.tolist()):
            seed = sample_seed(4, image_id, view)
            assert np.array_equal(image.numpy(), cropper(encoded(image_id), seed))
            expected = masker.indices(np.array([seed], np.uint64))[0]
            assert np.array_equal(indices.numpy(), expected)


def test_batches_do_not_change_behind_the_callers_back():
    with build(Memory(40), workers=1) as loader:
        first = next(loader)
        copy = plain(first)
        for _ in range(8):
            next(loader)
        assert same([plain(first)], [copy])


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_change_nothing(workers):
    source = Memory(45, bad={3, 4, 30})
    changes = dict(max_bad_fraction=0.5, batch_size=20)  # two tickets a batch
    expected, states = take(source, 7, **changes)
    batches, their_states = take(source, 7, workers=workers, **changes)
    assert same(batches, expected) and their_states == states


def test_an_epoch_has_no_repeats_and_no_gaps_over_ranks():
    source = Memory(36)
    one, _ = take(source, 12)
    for world in (2, 3):
        size = 6 // world
        ranks = [take(source, 12, rank=r, world=world, batch_size=size)[0] for r in range(world)]
        joined = [tuple(map(torch.cat, zip(*parts))) for parts in zip(*ranks)]
        assert same(joined, one)
    for epoch in range(2):
        assert sorted(ids_of(one[6 * epoch : 6 * epoch + 6])) == list(range(36))
    assert ids_of(one[:6]) != ids_of(one[6:])


def test_the_rest_of_an_epoch_is_left_out():
    batches, _ = take(Memory(20), 6)
    assert len(set(ids_of(batches[:3]))) == 18 and len(set(ids_of(batches[3:]))) == 18
    assert [b[3][0].item() for b in batches] == [0, 0, 0, 1, 1, 1]


def test_fewer_images_than_a_batch_are_repeated_in_other_views():
    batches, _ = take(Memory(4), 3)
    for _, _, ids, _ in batches:
        assert set(ids.tolist()) == {0, 1, 2, 3}
    pairs = [(i, v) for _, _, ids, views in batches for i, v in zip(ids.tolist(), views.tolist())]
    assert len(set(pairs)) == len(pairs)


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_in_the_middle_of_an_epoch(workers):
    source = Memory(50, bad={7})
    expected, states = take(source, 14, workers=1)
    for stop in (1, 5, 8, 11):
        batches, _ = take(source, 3, states[stop - 1], workers=workers)
        assert same(batches, expected[stop : stop + 3])


def test_resume_with_another_number_of_ranks():
    source = Memory(48)
    expected, states = take(source, 8)
    ranks = [take(source, 5, states[2], rank=r, world=2, batch_size=3)[0] for r in range(2)]
    joined = [tuple(map(torch.cat, zip(*parts))) for parts in zip(*ranks)]
    assert same(joined, expected[3:])


def test_a_running_loader_can_be_set_back():
    with build(Memory(50), workers=2) as loader:
        start = loader.state_dict()
        first = [plain(next(loader)) for _ in range(4)]
        loader.load_state_dict(start)
        assert same([plain(next(loader)) for _ in range(4)], first)
        loader.close()
        after = plain(next(loader))
        assert not same([after], first[3:])
        loader.load_state_dict(start)
        assert same([plain(next(loader)) for _ in range(5)][4:], [after])


def test_a_state_of_other_data_is_refused():
    _, states = take(Memory(50), 1)
    for source, changes in ((Memory(51), {}), (Memory(50), {"seed": 5})):
        with build(source, **changes) as loader, pytest.raises(ValueError, match="saved data pos"):
            loader.load_state_dict(states[0])


def test_a_state_of_other_weights_is_refused(tmp_path):
    a, b = write_folder(tmp_path / "a", 10), write_folder(tmp_path / "b", 10, start=10)
    write_shard(tmp_path / "s.tar", range(20))
    for other in (b, f"pipe:cat {tmp_path}/s.tar"):
        _, states = take(open_source([(a, 0.75), (other, 0.25)]), 2)
        take(open_source([(a, 0.75), (other, 0.25)]), 1, states[0])
        with pytest.raises(ValueError, match="same data, weights and seed"):
            take(open_source([(a, 0.25), (other, 0.75)]), 1, states[0])


def test_weights_set_the_shares(tmp_path):
    a = write_folder(tmp_path / "a", 10)
    b = write_folder(tmp_path / "b", 50, start=10)
    batches, _ = take(open_source(f"{a}:0.75,{b}:0.25"), 40, workers=1)
    ids = np.array(ids_of(batches))
    assert (ids[:60] < 10).sum() == 45  # exact in an epoch of 60
    assert len(ids) == 240 and set(ids.tolist()) == set(range(60))


# ---- bad images ----


def test_a_bad_image_is_replaced_by_the_next_in_order_and_recorded_once(tmp_path):
    record = tmp_path / "run" / "bad_images.jsonl"
    good, _ = take(Memory(60), 20)
    order = ids_of(good)[:60]
    bad = {order[3], order[20], order[21]}
    source = Memory(60, bad)
    with build(source, workers=2, bad_images=record, max_bad_fraction=0.2) as loader:
        batches = [plain(next(loader)) for _ in range(20)]
        assert loader.bad_count == 3
    expected = list(order)
    expected[3] = order[4]
    expected[20] = expected[21] = order[22]
    assert ids_of(batches)[:60] == expected
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert sorted(line["id"] for line in lines) == sorted(bad)
    assert all(line["name"] == f"picture {line['id']}" and line["reason"] for line in lines)
    # a resumed run, after a crash in the middle of a line, repeats none of them
    with open(record, "a") as file:
        file.write('{"id": 5, "na')
    _, states = take(Memory(60), 1)
    other = Memory(60, bad | {order[40]})
    with build(other, bad_images=record, max_bad_fraction=0.2) as loader:
        loader.load_state_dict(states[0])
        for _ in range(15):
            next(loader)
    names = re.findall(r'"name": "picture (\d+)"', record.read_text())
    assert sorted(map(int, names)) == sorted(bad | {order[40]})


class LongNames(Memory):
    def name(self, number):
        return f"{number}/" + 5_000 * "\u56fe"


@pytest.mark.parametrize("workers", [0, 2])
def test_names_of_any_length_are_recorded_whole(tmp_path, workers):
    record = tmp_path / "bad.jsonl"
    source = LongNames(40, bad={3, 21})
    with build(source, workers=workers, bad_images=record, max_bad_fraction=0.5) as loader:
        for _ in range(7):
            next(loader)
    names = [json.loads(line)["name"] for line in record.read_text().splitlines()]
    assert sorted(names) == sorted(map(source.name, source.bad))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_limit_on_pixels_reaches_the_workers(workers):
    def met(limit):
        bad = []
        with build(
            Memory(12), order="once", workers=workers, on_bad=bad.append, max_megapixels=limit,
            max_bad_fraction=1.0,
        ) as loader:  # fmt: skip
            list(loader)
        return bad

    assert met(0.01) == []
    refused = met(0.001)  # of 40 x 32 pixels each
    assert len(refused) == 12
    assert all("40x32" in bad.reason and "max_megapixels=0.001" in bad.reason for bad in refused)


def test_many_bad_images_stop_the_run_with_an_explanation(tmp_path):
    record = tmp_path / "bad_images.jsonl"
    source = Memory(400, bad=range(0, 400, 8))  # 12.5 %
    for workers in (0, 2):
        with (
            build(source, workers=workers, bad_images=record) as loader,
            pytest.raises(RuntimeError, match=r"could not be read.*bad_images.jsonl.*5%"),
        ):
            for _ in range(60):
                next(loader)
        with pytest.raises(RuntimeError), build(source, workers=workers) as loader:
            for _ in range(60):
                next(loader)


def test_a_few_bad_images_do_not_stop_the_run():
    source = Memory(400, bad=range(0, 400, 25))  # 4 %
    with build(source) as loader:
        for _ in range(140):
            next(loader)
        assert loader.bad_count == 16


def test_a_small_data_set_is_judged_after_an_epoch():
    with build(Memory(24, bad={1, 2})) as loader:
        for _ in range(3):
            next(loader)
        with pytest.raises(RuntimeError, match=r"\d of 2\d images could not be read"):
            next(loader)


@pytest.mark.parametrize("workers", [0, 1])
def test_no_readable_image_is_an_error_not_a_search_without_end(workers):
    with (
        build(Memory(10_000, bad=range(10_000)), workers=workers) as loader,
        pytest.raises(RuntimeError, match="100 images in a row could not be read"),
    ):
        next(loader)


def test_files_that_vanish_count_as_bad(tmp_path):
    source = open_source(write_folder(tmp_path / "a", 40))
    Path(source.name(17)).unlink()
    with build(source, bad_images=tmp_path / "bad.jsonl") as loader:
        for _ in range(6):
            next(loader)
    (line,) = (tmp_path / "bad.jsonl").read_text().splitlines()
    assert "00017.jpg" in line and "FileNotFoundError" in line


def test_kinds_of_bad_files(tmp_path):
    root = write_folder(tmp_path / "a", 60)
    good = encoded(1, (400, 300))
    broken = {
        "zero": b"",
        "truncated": good[: len(good) // 3],
        "text": b"<html>404 not found</html>",
        "bomb": b"\x89PNG\r\n\x1a\n" + bytes.fromhex(
            "0000000d49484452 0000ffff 0000ffff 0802000000"  # 65535 x 65535 pixels
        ) + b"\0" * 40,
        "noise": os.urandom(3000),
    }  # fmt: skip
    for name, data in broken.items():
        (root / f"bad-{name}.jpg").write_bytes(data)
    (root / "png-named.jpg").write_bytes(encoded(2, form="PNG"))  # wrong name, good image
    record = tmp_path / "bad.jsonl"
    with build(open_source(root), workers=1, bad_images=record, max_bad_fraction=0.5) as loader:
        for _ in range(33):
            next(loader)
    names = [Path(json.loads(line)["name"]).name for line in record.read_text().splitlines()]
    assert sorted(names) == sorted(f"bad-{name}.jpg" for name in broken)


# ---- wrong settings ----


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(batch_size=0), "batch_size"),
        (dict(workers=-1), "workers"),
        (dict(rank=2, world=2), "rank 2 of 2"),
        (dict(image_size=30), "multiple of patch_size"),
        (dict(mask_ratio=0.4), "one of mask_ratio and mask_count"),
        (dict(mask_count=None), "one of mask_ratio and mask_count"),
        (dict(mask_count=None, mask_ratio=1.5), "mask_ratio"),
        (dict(mask_count=5), "4"),
        (dict(max_bad_fraction=2), "max_bad_fraction"),
        (dict(scale=(0, 1)), "scale"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_wrong_settings_are_explained(changes, words):
    with pytest.raises(ValueError, match=words):
        build(Memory(20), **changes)
