"""eva_fast: EVA pre-training of vision transformers, exact and fast.

Names are loaded on first use, so that `import eva_fast` and `eva-fast --help` stay quick.
"""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eva_fast.version import __version__

if TYPE_CHECKING:
    from eva_fast import (
        config,
        data,
        evaluation,
        model,
        native,
        objectives,
        ops,
        planning,
        teachers,
        train,
        weights,
    )
    from eva_fast.acceleration import accelerate
    from eva_fast.data import BlockMasker
    from eva_fast.evaluation.evaluator import evaluate
    from eva_fast.evaluation.result import Evaluation
    from eva_fast.model import create_model
    from eva_fast.planning.planner import plan
    from eva_fast.planning.result import Plan
    from eva_fast.planning.simulate import Simulation
    from eva_fast.recipes.ablate import AblationResult, ablate
    from eva_fast.recipes.export import export
    from eva_fast.recipes.pretrain import PretrainResult, pretrain
    from eva_fast.recipes.trainer import Trainer
    from eva_fast.reporting.report import report
    from eva_fast.teachers import load_teacher
    from eva_fast.train.callbacks import Callback, Training

_HOME = {
    "ablate": "eva_fast.recipes.ablate",
    "AblationResult": "eva_fast.recipes.ablate",
    "pretrain": "eva_fast.recipes.pretrain",
    "PretrainResult": "eva_fast.recipes.pretrain",
    "create_model": "eva_fast.model",
    "evaluate": "eva_fast.evaluation.evaluator",
    "Evaluation": "eva_fast.evaluation.result",
    "export": "eva_fast.recipes.export",
    "plan": "eva_fast.planning.planner",
    "Plan": "eva_fast.planning.result",
    "Simulation": "eva_fast.planning.simulate",
    "accelerate": "eva_fast.acceleration",
    "load_teacher": "eva_fast.teachers",
    "report": "eva_fast.reporting.report",
    "BlockMasker": "eva_fast.data",
    "Callback": "eva_fast.train.callbacks",
    "Trainer": "eva_fast.recipes.trainer",
    "Training": "eva_fast.train.callbacks",
}
__all__ = [
    "AblationResult",
    "BlockMasker",
    "Callback",
    "Evaluation",
    "Plan",
    "PretrainResult",
    "Simulation",
    "Trainer",
    "Training",
    "__version__",
    "ablate",
    "accelerate",
    "config",
    "create_model",
    "data",
    "evaluate",
    "evaluation",
    "export",
    "load_teacher",
    "model",
    "native",
    "objectives",
    "ops",
    "plan",
    "planning",
    "pretrain",
    "report",
    "teachers",
    "train",
    "weights",
]

_MODULES = frozenset(__all__) - _HOME.keys() - {"__version__"}


def _find_kernels() -> None:
    """In a checkout that was never installed `eva_fast.kernels` lies beside the package: an install
    puts it inside."""
    name, file = f"{__name__}.kernels", Path(__file__).parents[1] / "kernels" / "__init__.py"
    if importlib.util.find_spec(name) is not None or not file.is_file():
        return
    folder = [str(file.parent)]
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=folder)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = globals()["kernels"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


_find_kernels()


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"eva_fast.{name}")
    raise AttributeError(f"module 'eva_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
