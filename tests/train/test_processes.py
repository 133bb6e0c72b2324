"""What is settled before several processes begin, and what they say of faults."""

import pytest

from eva_fast.config import Config
from eva_fast.errors import UsageError
from eva_fast.train.processes import Agreement, check_processes, going_on
from eva_fast.train.sharding import usual
from eva_fast.world import ALONE, World, asked_for, world


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, ALONE),
        ({"WORLD_SIZE": "1", "RANK": "0"}, ALONE),
        (
            {"WORLD_SIZE": "16", "RANK": "9", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8"},
            World(9, 16, 1, 8),
        ),
        ({"WORLD_SIZE": "2", "RANK": "1"}, World(1, 2, 1, 2)),
    ],
)
def test_the_environment_says_how_many(environment, expected):
    assert asked_for(environment) == expected and world() is ALONE


@pytest.mark.parametrize(
    "environment, says",
    [
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"WORLD_SIZE": "two", "RANK": "0"}, "not all numbers"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "cannot be"),
    ],
)
def test_an_environment_that_cannot_be(environment, says):
    with pytest.raises(UsageError, match=says):
        asked_for(environment)


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(batch_size=6), "not a multiple of 4 processes$"),
        (dict(batch_size=12, accumulate=2), "4 processes x accumulate 2"),
        (dict(batch_size=8, graph="on"), "graph='on' is for one process"),
    ],
)
def test_what_several_processes_cannot_do(options, says):
    with pytest.raises(UsageError, match=says):
        check_processes(Config.from_options(options), World(0, 4, 0, 4))


def test_processes_that_torchrun_starts_anew_go_on(monkeypatch, tmp_path):
    config = Config.from_options({"batch_size": 8})
    assert going_on(config) is config
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(UsageError, match="needs out="):
        check_processes(config, World(0, 4, 0, 4))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert going_on(config).run.resume == "auto"


@pytest.mark.parametrize(
    "parameters, nodes, expected",
    [(86e6, 16, "replicate"), (1e9, 1, "full"), (1e9, 2, "hybrid"), (1e9, 16, "hybrid")],
)
def test_the_usual_sharding(parameters, nodes, expected):
    """Hybrid beyond one machine, where one process cannot well hold all."""
    assert usual(int(parameters), nodes) == expected


def test_alone_a_wish_is_granted_at_once():
    agreed = Agreement()
    assert agreed(15, 1) == (15, 1) and agreed.settle() is None
