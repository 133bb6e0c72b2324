"""Variants from elsewhere: torch.compile, and libraries where they are installed."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.harness import REFERENCE, TUNED

# Wall time of one Inductor compilation on two cores is many seconds; --quick keeps it to these.
COMPILED_WHEN_QUICK = frozenset({"add_layer_norm", "block"})


@dataclass(slots=True)
class Kit:
    """Collects the variants of one subject; what cannot run is kept with the reason."""

    subject: str
    timed: bool
    quick: bool
    official: Path | None = None
    """Folder of the official code, see `bench.official`."""
    functions: dict[str, Callable[..., Any]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, function: Callable[..., Any]) -> None:
        """A variant that runs everywhere."""
        self.functions[name] = function

    def add_compiled(self, function: Callable[..., Any] | None = None) -> None:
        """torch.compile of the tuned variant, or of `function`. Without timing the graph is captured
        whole but not compiled, which takes a fraction of the time."""
        if self.timed and self.quick and self.subject not in COMPILED_WHEN_QUICK:
            self.missing["compile"] = "not with --quick"
            return
        torch._dynamo.reset()
        backend = "inductor" if self.timed else "eager"
        target = function or self.functions.get(TUNED) or self.functions[REFERENCE]
        self.functions["compile"] = torch.compile(target, backend=backend, dynamic=False)

    def add_library(
        self,
        name: str,
        module: str,
        make: Callable[[Any], Callable[..., Any]],
        needs_gpu: bool = True,
    ) -> None:
        """A variant that `make` builds from an installed module."""
        if importlib.util.find_spec(module.split(".")[0]) is None:
            self.missing[name] = f"{module.split('.')[0]} is not installed"
        elif needs_gpu and not torch.cuda.is_available():
            self.missing[name] = "needs a GPU"
        else:
            self.functions[name] = make(importlib.import_module(module))
