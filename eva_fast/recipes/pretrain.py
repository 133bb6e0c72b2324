"""`pretrain()`: the whole recipe of pre-training, top to bottom.

Heavy imports are inside the functions: importing eva_fast and wrong options cost no time.
"""

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eva_fast.config import Config
from eva_fast.keywords import AnyPath, PretrainOptions, Unpack, documented
from eva_fast.recipes.start import Start

if TYPE_CHECKING:
    from torch import nn

    from eva_fast.objectives import Objective
    from eva_fast.objectives.base import Setting
    from eva_fast.train.callbacks import Callback

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainResult:
    """What a run leaves behind. Printed it says how it went and where things are."""

    out: Path
    """The run's folder."""
    checkpoint: Path
    """The newest checkpoint, from which `resume='auto'` goes on."""
    weights: Path
    """`model.safetensors`: what the objective hands on; of the student in official naming."""
    picture: Path
    """PNG of what the objective shows: images, masks, teacher features and predictions, say."""
    metrics: dict[str, Any]
    """The last line of `metrics.jsonl`; `first_loss` is the loss of the first line. Empty where the run
    was stopped before that (`log_every`)."""
    model: "nn.Module" = field(repr=False)
    """What was written to `weights`, in evaluation mode."""
    step: int
    """Steps that are finished, of this call and those before it."""
    total: int
    """Steps of the whole run."""
    stopped_by: str | None = None
    """Name of the signal that ended the run early, "callback", or None: the run is complete."""
    signal: str | None = None
    """Name of the signal that came, also where all steps were done by then, or None."""
    probes: tuple[dict[str, Any], ...] = ()
    """The lines of `probes.jsonl`; a probe that failed has `error` in place of scores."""

    @property
    def loss(self) -> float | None:
        """The loss of the last line of metrics; None where there is none."""
        return self.metrics.get("loss")

    @property
    def first_loss(self) -> float | None:
        """The loss of the first line of metrics; None where there is none."""
        return self.metrics.get("first_loss")

    @property
    def gain(self) -> float | None:
        """Over the best constant prediction, as of the last line of metrics; None where it is not
        known."""
        return self.metrics.get("gain")

    def __str__(self) -> str:
        from eva_fast.recipes.ending import outcome

        return "\n".join(outcome(self))


@documented(Config)
def pretrain(
    data: Any = "builtin",
    model: str | None = None,
    teacher: Any = None,
    out: AnyPath | None = None,
    callbacks: "Sequence[Callback]" = (),
    **options: Unpack[PretrainOptions],
) -> PretrainResult:
    """Pre-trains a student to predict a frozen teacher's features of masked patches (EVA, CVPR 2023),
    or towards another objective.

    Args:
        data: "builtin", a folder, folders with weights, a text file of paths, tar shards, or a
            map-style dataset (`eva_fast.data.open_source` has the details).
        model: name of the student, for example "eva_g_patch14_224"; by default the recipe's, else
            "eva_ti_patch16_96". Where data, teacher, objective and all of the student are left to
            their defaults, it has 6 blocks and patches of 12 pixels (`Config.settled`).
        teacher: "builtin", "hog", a CLIP file or folder, a name such as "openai/ViT-L-14", or a
            teacher module (`eva_fast.load_teacher`); by default the recipe's, else "builtin".
        out: folder of the run; by default runs/MODEL-TIME.
        callbacks: instances of classes derived from `eva_fast.Callback`, told what happens.
        options: any field of the classes in `eva_fast.config`, listed below: sizes, `batch_size`,
            `steps`, `lr`, `objective` (a name of `eva_fast.objectives.OBJECTIVES`, or a class or
            instance of one's own), ...

    Returns:
        PretrainResult with paths, last metrics and the trained model.

    Raises:
        ValueError, FileNotFoundError: a wrong option, path or file; before training where possible.
        RuntimeError: too many unreadable images, a worker died, or too many steps in a row were not
            finite (`NonFiniteError`) or spikes (`LossSpikeError`); the run can be resumed.
    """
    from eva_fast.recipes.ending import ending
    from eva_fast.recipes.hearing import heard

    named = {"model": model, "teacher": teacher, "out": out}
    said = {name: value for name, value in named.items() if value is not None}
    config = Config.from_options({"data": data, **said, **options})
    result = run(config, callbacks=callbacks)
    with heard():
        log.info("%s", "\n".join(ending(config, result)))
    return result


def run(
    config: Config,
    on_step: Callable[[int], object] | None = None,
    callbacks: "Sequence[Callback]" = (),
) -> PretrainResult:
    """`pretrain` for a ready configuration, without the last words. on_step: called with the number
    of finished steps after each."""
    from eva_fast.train.callbacks import EachStep, check_callbacks

    own = () if on_step is None else (EachStep(on_step),)
    going = steps(config, (*own, *check_callbacks(callbacks)))
    while True:
        try:
            next(going)
        except StopIteration as end:
            return end.value


def steps(
    config: Config, callbacks: "Sequence[Callback]" = ()
) -> Generator[int, None, PretrainResult]:
    """`run`, step by step: yields the number of finished steps after each. What a run changes for its
    time, signals and PyTorch's global settings, is changed until the generator has ended."""
    start = Start()
    from eva_fast import world
    from eva_fast.data.decode.formats import reading_arrays
    from eva_fast.device import undisturbed
    from eva_fast.objectives import open_objective
    from eva_fast.recipes.hearing import heard
    from eva_fast.recipes.probing import probing
    from eva_fast.train.processes import going_on, joined
    from eva_fast.train.resolve import check_run, sample_options, setting_of

    told = (*probing(config), *callbacks)
    setting, to = setting_of(going_on(config)), world.asked_for()
    objective = open_objective(config.objective.objective)
    sample = sample_options(setting, objective)
    check_run(setting.config, setting.device)
    minutes = config.run.process_minutes
    with (
        heard(to.first), undisturbed(setting.device), joined(to, setting.device, minutes),
        reading_arrays(config.data.channels != 3),
    ):  # fmt: skip
        return (yield from _train(setting, objective, sample, told, start))


def _train(
    setting: "Setting",
    objective: "Objective",
    sample: dict[str, Any],
    callbacks: "Sequence[Callback]",
    start: Start,
) -> Generator[int, None, PretrainResult]:
    """Teacher, student, loader, loop and what is left behind, for options that were checked."""
    from eva_fast.data import build_loader, open_source
    from eva_fast.device import seed
    from eva_fast.layers import drop_copies
    from eva_fast.objectives.request import answer, open_teacher
    from eva_fast.recipes.probing import lines_of
    from eva_fast.train import RunLength, TrainStep, checkpoint, train
    from eva_fast.train.baseline import verdict
    from eva_fast.train.callbacks import EachStep
    from eva_fast.train.captured import CapturedStep
    from eva_fast.train.examples import Examples
    from eva_fast.train.folder import (
        last_metrics,
        open_folder,
        say_what_is_missing,
        write_header,
    )
    from eva_fast.train.resolve import loader_options
    from eva_fast.train.same_data import as_before
    from eva_fast.train.same_teacher import check_teacher
    from eva_fast.train.stop import CALLBACK
    from eva_fast.train.teacher_sharding import gathered
    from eva_fast.train.telemetry import open_telemetry
    from eva_fast.train.together import begin, save, whole_module
    from eva_fast.world import from_first, world

    config, device, request = setting.config, setting.device, objective.request(setting)
    start.done("imports")
    say_what_is_missing()
    source = open_source(config.data.data)
    start.done("data")
    teacher = open_teacher(config.teacher.teacher, request, setting)
    start.done("teacher")

    with ExitStack() as held:
        out, resume_from = held.enter_context(open_folder(config))
        if resume_from is not None:
            source = as_before(source, config, out, resume_from)
            check_teacher(teacher, config, out, resume_from)
        seed(config.run.seed, device)
        module = objective.build(setting, teacher).to(device)
        if resume_from is None and config.model.init_from is not None:
            objective.initialise(module, config.model.init_from)
        loader = held.enter_context(build_loader(source, **sample, **loader_options(setting, out)))
        start.done("student")
        kept = None if resume_from is None else checkpoint.run_state(resume_from)["kernels"]
        examples = Examples(source, sample, device)

        def first() -> None:
            start.done("kernels")
            objective.start(module, teacher, setting, examples.batches)
            start.done("calibration" if request is not None and request.calibrated else "objective")

        state = begin(
            setting, objective, module, teacher, loader,
            kept=kept, first=first if resume_from is None else None,
        )  # fmt: skip
        step = TrainStep(
            state, objective, answer(teacher, request),
            clip_grad=config.optim.clip_grad, accumulate=config.optim.accumulate,
        )  # fmt: skip
        start.done("kernels")
        length = RunLength.of(config, loader.batches_per_epoch)
        log.info("%s", length.describe(len(source), config.optim.batch_size))
        if resume_from is not None:
            state.restore(resume_from, data_moved=config.data.data_moved)
            log.info("going on from %s, step %d of %d", resume_from, state.step, length.total)
            start.done("checkpoint")
        write_header(out, config, module, device, state.step)

        def whole() -> "nn.Module":
            return whole_module(setting, objective, state)

        def draw(path: Path) -> Path:
            shown = whole()
            with gathered(teacher):
                return examples.draw(path, objective, shown, teacher) if world().first else path

        with open_telemetry(out, config, state.step, length.total) as telemetry:
            asked = yield from train(
                CapturedStep(step, config.run.graph), length, config, out, telemetry,
                picture=draw, callbacks=(EachStep(start.first_step), *callbacks),
                student=lambda: objective.exported(whole()),
            )  # fmt: skip
        loader.close()

        metrics = from_first(last_metrics(out) if world().first else {})
        complete = state.step >= length.total
        poor = verdict(metrics, taught=request is not None) if complete else None
        if poor is not None:
            log.warning("%s", poor)
        drop_copies(module.eval())
        weights = out / "model.safetensors"
        student = save(setting, objective, state, weights)
        return PretrainResult(
            out=out,
            checkpoint=checkpoint.steps_in(out / "checkpoints")[-1],
            weights=weights,
            picture=draw(out / "picture.png"),
            metrics=metrics,
            model=student,
            step=state.step,
            total=length.total,
            stopped_by=None if complete else asked,
            signal=None if asked == CALLBACK else asked,
            probes=tuple(from_first(lines_of(out) if world().first else [])),
        )
