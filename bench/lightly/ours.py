"""Our side, a process of its own: `python -m bench.lightly.ours ANSWERS OPTIONS IN_MEMORY`."""

import json
import sys
from typing import Any

from bench.lightly.turns import InMemory, Turns


def main(answers: str, options: str, in_memory: str) -> None:
    turns = Turns(int(answers))
    import eva_fast
    import eva_fast.data

    class Clock(eva_fast.Callback):
        def on_step(self, training: Any) -> None:
            if not turns.after_step():
                training.stop()

    if json.loads(in_memory):
        build: Any = eva_fast.data.build_loader
        eva_fast.data.build_loader = lambda *a, **k: InMemory(build(*a, **k))  # type: ignore[assignment,misc]
    eva_fast.pretrain(**json.loads(options), callbacks=[Clock()])


if __name__ == "__main__":
    main(*sys.argv[1:])
