"""EVA-01's pre-training script, as eva_fast runs it.

    torchrun --nproc-per-node 8 -m eva_fast.compat.run_eva_pretraining --data_path ... --output_dir ...

takes the flags of the official `run_eva_pretraining.py` and trains with their meaning. What it cannot
do as asked it refuses, or warns of by the flag's name: docs/coming-from-eva.md.
"""

import logging
import os
import random
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from eva_fast.compat import flags, launch
from eva_fast.compat.official import FLAGS
from eva_fast.compat.outputs import Outputs, check_folder
from eva_fast.compat.translate import device_of, epoch_steps, options_of
from eva_fast.config import Config
from eva_fast.errors import RunError, UsageError
from eva_fast.files import RUN_CONFIG
from eva_fast.world import asked_for, from_first

if TYPE_CHECKING:
    from eva_fast.recipes.pretrain import PretrainResult

log = logging.getLogger("eva_fast.compat.run_eva_pretraining")  # not __main__
MOST_SEED = 1_000_000


def main(argv: Sequence[str] | None = None) -> None:
    """The program. Exit status as `eva-fast` has it: 2 for wrong use, 1 for a run that failed."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("torch").setLevel(logging.WARNING)
    try:
        said = flags.read(FLAGS, list(sys.argv[1:] if argv is None else argv))
        launch.settle(os.environ, said.local_rank)
        if asked_for().first:
            for line in flags.warnings(FLAGS, said):
                log.warning("%s", line)
        config, result = run(said)
    except (UsageError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    if asked_for().first:
        from eva_fast.recipes.ending import ending

        print("\n".join(ending(config, result)))


def run(said: flags.Said) -> "tuple[Config, PretrainResult]":
    """Trains as the flags say, and returns what that came to."""
    from eva_fast.data import open_source
    from eva_fast.recipes import pretrain
    from eva_fast.recipes.hearing import heard
    from eva_fast.train import RunLength
    from eva_fast.train.processes import joined
    from eva_fast.train.resolve import device_and_dtype

    to = asked_for()
    if said.output_dir:
        check_folder(Path(said.output_dir))
    with ExitStack() as held:
        held.enter_context(heard(to.first))
        images = len(open_source(said.data_path))
        device = device_and_dtype(Config.from_options({"device": device_of(said)}))[0]
        if device.type == "cpu":
            log.warning(
                "the run is on the CPU, in float32: the official script needs an NVIDIA GPU"
            )
        config = Config.from_options(options_of(said, to.size, images, device.type))
        length = RunLength.of(config, epoch_steps(said, to.size, images))
        held.enter_context(joined(to, device, config.run.process_minutes))
        if said.rand:
            seed = from_first(_seed(config.run.out) if to.first else None)
            config = replace(config, run=replace(config.run, seed=seed))
        outputs = Outputs(config.run.out, config, length) if config.run.out and to.first else None
        result = pretrain.run(config, outputs.on_step if outputs else None)
        if outputs:
            outputs.finish()
    return config, result


def _seed(out: Path | None) -> int:
    """That of the run which goes on in the folder, else one by chance."""
    if out is not None and (out / RUN_CONFIG).is_file():
        return Config.from_yaml(out / RUN_CONFIG).run.seed
    return random.SystemRandom().randint(0, MOST_SEED)


if __name__ == "__main__":
    main()
