"""The process of one stage: `python -m bench.session.child STAGE SECONDS OUT`."""

import contextlib
import gc
import importlib
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench.session.notes import Notes
from bench.shapes import Shape, check_shape, vit

_MARGIN = 0.06  # share of its time that a stage leaves unused, so that nobody has to end it


@dataclass(kw_only=True)
class Bench:
    """What a stage works with."""

    notes: Notes
    seconds: float
    """It may take, counted from the making of this."""
    failures: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def tiny(self) -> bool:
        """Without a GPU: micro sizes."""
        return not torch.cuda.is_available()

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.tiny else "cuda")

    @property
    def out(self) -> Path:
        return self.notes.out

    def left(self) -> float:
        """Seconds."""
        return self.seconds * (1 - _MARGIN) - (time.monotonic() - self.started)

    def shape(self, size: str, batch: int) -> Shape:
        """ViT-`size`/14 in bfloat16 on the GPU."""
        return check_shape() if self.tiny else vit(size, batch, "cuda", torch.bfloat16)

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """A failure inside costs a line in the results, not the stage."""
        try:
            yield
        except Exception as error:
            self.failures += 1
            traceback.print_exc()
            text = f"{type(error).__name__}: {error}"
            self.notes.add("failure", what=what, error=text[:600])
            self.free()

    def skip(self, what: str) -> None:
        """Notes that there was no time for it."""
        self.notes.add("skipped", what=what)

    def free(self) -> None:
        """Gives the memory of what is gone back to the device."""
        gc.collect()
        if not self.tiny:
            with contextlib.suppress(Exception):
                torch.cuda.empty_cache()


def main(stage: str, seconds: float, out: Path) -> None:
    bench = Bench(notes=Notes(out, stage), seconds=seconds)
    importlib.import_module(f"bench.session.stages.{stage}").run(bench)
    if bench.failures:
        sys.exit(f"{bench.failures} failures")


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]))
