"""Processes agree on a name in a store where former ones have left theirs."""

import threading

import pytest
from torch.distributed import HashStore

from eva_fast.errors import RunError
from eva_fast.train.meeting import agree
from eva_fast.world import World


def met(store, ranks, size):
    found = {}

    def come(rank):
        found[rank] = agree(store, World(rank, size, rank, size), 20)

    threads = [threading.Thread(target=come, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.parametrize("first_last", [True, False])
def test_all_get_one_name_and_each_meeting_another(first_last):
    store = HashStore()
    ranks = (2, 1, 0) if first_last else (0, 1, 2)
    names = [met(store, ranks, 3) for _ in range(3)]
    assert all(len(found) == 3 and len(set(found.values())) == 1 for found in names)
    assert len({found[0] for found in names}) == 3


def test_what_a_process_left_that_never_met_anyone_does_no_harm():
    store = HashStore()
    store.set("hello/0", "stale")
    store.set("hello/1", "stale")
    store.set("call", "old stale stale")
    found = met(store, (1, 0), 2)
    assert found[0] == found[1] != "old"


def test_a_process_that_does_not_come_ends_the_wait():
    with pytest.raises(RunError, match="not all processes of the run came"):
        agree(HashStore(), World(0, 2, 0, 2), 0.2)
