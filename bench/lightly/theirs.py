"""LightlyTrain's side, a process of its Python:
`python -m bench.lightly.theirs ANSWERS OPTIONS IN_MEMORY`.

The clock is a callback of Lightning beside theirs, for which their options have no place: it is added to
the trainer that they make.
"""

import json
import sys
from typing import Any

from bench.lightly.turns import InMemory, Turns


def main(answers: str, options: str, in_memory: str) -> None:
    turns = Turns(int(answers))
    import lightly_train
    import pytorch_lightning as lightning

    class Clock(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            if not turns.after_step():
                trainer.should_stop = True

    fit = lightning.Trainer.fit

    def timed(trainer: Any, *, train_dataloaders: Any, **rest: Any) -> Any:
        trainer.callbacks.append(Clock())
        loader = InMemory(train_dataloaders) if json.loads(in_memory) else train_dataloaders
        return fit(trainer, train_dataloaders=loader, **rest)

    lightning.Trainer.fit = timed
    lightly_train.pretrain(**json.loads(options))


if __name__ == "__main__":
    main(*sys.argv[1:])
