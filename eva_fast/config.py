"""Everything a run can be told: read, merged, checked, written.

The options stand beside what they configure, one frozen dataclass per concern; their docstrings are
the help of `eva-fast pretrain --help`. `Config.from_options` takes the same names flat, as
`eva_fast.pretrain(...)` and a YAML file do. Values that cannot work are refused here, before
anything is loaded. Defaults are EVA-01's (docs/eva01.md) unless said; `presets` and `settled` have
the exceptions.
"""

import dataclasses
import difflib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eva_fast.data.config import DataConfig
from eva_fast.documents import read_yaml
from eva_fast.errors import UsageError
from eva_fast.keywords import RunOptions, Unpack
from eva_fast.model.config import ModelConfig
from eva_fast.objectives.config import ObjectiveConfig
from eva_fast.options import fit, may_change, plain, require, user_path
from eva_fast.presets import with_defaults
from eva_fast.teachers.config import BUILTIN, TeacherConfig
from eva_fast.train.config import OptimConfig, ProbeConfig, RunConfig

__all__ = [
    "MAY_CHANGE",
    "Config",
    "DataConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OptimConfig",
    "ProbeConfig",
    "RunConfig",
    "TeacherConfig",
]

# The built-in drawings and teacher without a word about the student: half its blocks, and patches of
# 12 pixels, so that some three minutes on two cores show most.
FIRST_RUN = (BUILTIN, "eva")
FIRST_STUDENT: dict[str, Any] = {"depth": 6, "patch_size": 12}


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """A whole run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    probes: ProbeConfig = field(default_factory=ProbeConfig)

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> "Config":
        """A configuration from flat names; below them those of the recipe that `recipe` names, then
        the objective's own defaults (`presets.OWN_DEFAULTS`). ValueError for an unknown name (with
        the nearest one) or a value of the wrong kind."""
        groups: dict[str, dict[str, Any]] = {}
        for name, value in with_defaults(options).items():
            if name not in _HOME:
                near = difflib.get_close_matches(name, _HOME, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_HOME)}"
                raise UsageError(f"unknown option {name!r}; {hint}")
            group, option = _HOME[name]
            groups.setdefault(group, {})[name] = fit(name, option.type, value)
        parts: Any = dataclasses.fields(cls)
        return cls(**{part.name: part.type(**groups.get(part.name, {})) for part in parts})

    @classmethod
    def from_yaml(cls, path: Path | str, **over: Unpack[RunOptions]) -> "Config":
        """The options of a YAML file (as `config.yaml` of a run holds them), `over` winning. Data
        that is a command has to come from `over`: files may be anybody's."""
        options = read_yaml(user_path(path), pipe=True)
        if options is None:
            options = {}
        if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
            raise UsageError(f"{path} must hold lines of `option: value`")
        for name in ("teacher", "objective"):
            require(isinstance(options.get(name, ""), str), f"{path}: {name} must be text")
        require(
            _is_data(options.get("data", "")),
            f"{path}: data must be text, or a list of texts and of [text, weight]",
        )
        for name in ("data", "probe_data"):
            require(
                name in over or "pipe:" not in str(options.get(name)),
                f"{path}: {name} is a command (pipe:...), and what a file says is not run: give it "
                f"beside the file, {name}='pipe:...'",
            )
        return cls.from_options({**options, **over})

    def settled(self) -> "Config":
        """With what nobody said and what depends on other options: whitening, which the teacher in
        the package wants, and the student of a first run. A run is made of this, and its
        `config.yaml` holds it."""
        model, teacher = self.model, self.teacher
        if teacher.whiten is None:
            teacher = replace(teacher, whiten=teacher.teacher == BUILTIN)
        said = (teacher.teacher, self.objective.objective)
        first = self.data.is_builtin and said == FIRST_RUN
        if first and model == replace(ModelConfig(), drop_path=model.drop_path):
            model = replace(model, **FIRST_STUDENT)
        return replace(self, model=model, teacher=teacher)

    def options(self) -> dict[str, Any]:
        """Flat names and values, fit for YAML; objects and classes given from Python as
        their description."""
        flat: dict[str, Any] = {}
        for group in dataclasses.fields(self):
            part = getattr(self, group.name)
            flat |= {f.name: plain(getattr(part, f.name)) for f in dataclasses.fields(part)}
        return flat

    def changed(self, before: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """Options that make this another run than the one that was started with `before`, its
        `options()`: {name: (value then, value now)}. What a resumed run may change is not among
        them, nor what `before` did not know yet."""
        now = self.options()
        return {
            name: (before[name], value)
            for name, value in now.items()
            if name in before
            and _same_place(before[name]) != _same_place(value)
            and name not in MAY_CHANGE
        }


def _is_data(value: Any) -> bool:
    """Whether a value of YAML can name data; whether it does is found when it is opened."""
    if isinstance(value, str) or not isinstance(value, list):
        return isinstance(value, str)
    weighted = len(value) == 2 and isinstance(value[1], int | float)
    return all(map(_is_data, value[:1] if weighted else value))


def _same_place(value: Any) -> Any:
    """A path as it is compared: /data/x/, /data/./x and, where it exists, x are /data/x. Other values
    as they are."""
    if not isinstance(value, str) or "://" in value:
        return value
    if os.path.exists(value):
        return os.path.realpath(value)
    return os.path.normpath(value) if "/" in value else value


# Where each flat name lives: {"lr": ("optim", <field lr>), ...}
_HOME = {
    option.name: (group.name, option)
    for group in dataclasses.fields(Config)
    for option in dataclasses.fields(group.type)  # type: ignore[arg-type]
}

# What a run may change when it goes on; anything else would make it another run.
MAY_CHANGE = frozenset(name for name, (_, option) in _HOME.items() if may_change(option))
