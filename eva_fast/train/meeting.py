"""How the processes of a run find each other in a store that outlives them.

torchrun's agent keeps one store for all that it starts. Processes that it starts anew would read there
where the former ones were to be reached (pytorch/pytorch#135712), and the count of restarts is each
machine's own (#108158). So they first agree on a name under which nobody has written:

    each   hello/RANK = a token of its own
    first  call = a name and the tokens it read; again until all have answered to that name
    each   answers where its token is among them, until the first says that all have
"""

import os
import time
import uuid
from datetime import timedelta
from typing import Any

from eva_fast.errors import RunError
from eva_fast.world import World

AGENT = "TORCHELASTIC_USE_AGENT_STORE"
_PAUSE_SECONDS, _PATIENCE_SECONDS = 0.02, 1.0


def agent_store(to: World, timeout: timedelta) -> Any:
    """A part of torchrun's store that only the present processes of `to` use; None where torchrun's
    agent keeps none. RunError where not all come within `timeout`."""
    if os.environ.get(AGENT) != "True":
        return None
    from torch.distributed import PrefixStore, TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(host, port, is_master=False, timeout=timeout)
    name = agree(PrefixStore("eva_fast", store), to, timeout.total_seconds())
    return PrefixStore(f"eva_fast/{name}", store)


def agree(store: Any, to: World, seconds: float) -> str:
    """The name of this meeting, the same for all processes of `to` that are there now."""
    end = time.monotonic() + seconds
    token = uuid.uuid4().hex
    store.set(f"hello/{to.rank}", token)
    return _call(store, to, token, end) if to.first else _answer(store, to, token, end)


def _call(store: Any, to: World, token: str, end: float) -> str:
    for number in range(1_000_000):
        _check(end)
        if not store.check([f"hello/{rank}" for rank in range(to.size)]):
            time.sleep(_PAUSE_SECONDS)
            continue
        name = f"{token}-{number}"
        tokens = [store.get(f"hello/{rank}").decode() for rank in range(to.size)]
        store.set("call", " ".join([name, *tokens]))
        answers = [f"{name}/{rank}" for rank in range(1, to.size)]
        patience = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < min(patience, end):
            if store.check(answers):
                store.set(f"{name}/all", "")
                return name
            time.sleep(_PAUSE_SECONDS)
    raise AssertionError  # `_check` ends it


def _answer(store: Any, to: World, token: str, end: float) -> str:
    while True:
        _check(end)
        if store.check(["call"]):
            name, *tokens = store.get("call").decode().split()
            if token in tokens:
                store.set(f"{name}/{to.rank}", "")
                if store.check([f"{name}/all"]):
                    return name
        time.sleep(_PAUSE_SECONDS)


def _check(end: float) -> None:
    if time.monotonic() > end:
        raise RunError(
            "not all processes of the run came; look at what the others say, and at the addresses "
            "and ports between the machines (process_minutes is how long one waits)"
        )
