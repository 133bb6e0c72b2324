"""Options of the benchmarks, the case fixture, and the results file at the end of a timed run."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from bench import machine, official
from bench.harness import OURS, Case, Settings, check_agreement, measure
from bench.pace import Pace
from eva_fast.errors import UsageError
from eva_fast.files import atomic_write
from eva_fast.ops.settle import settle

RESULTS = Path(__file__).parent / "results"

# pytest-benchmark's own options that ask for timing as well.
ASKS_FOR_TIMING = (
    "benchmark_only",
    "benchmark_enable",
    "benchmark_json",
    "benchmark_autosave",
    "benchmark_save",
    "benchmark_compare",
)


def pytest_addoption(parser):
    group = parser.getgroup("eva_fast benchmarks")
    group.addoption(
        "--benchmark",
        action="store_true",
        dest="eva_timed",
        help="time the benchmarks and write results (without it they only run once, tiny)",
    )
    group.addoption(
        "--quick",
        action="store_true",
        dest="eva_quick",
        help="with --benchmark: fewer shapes and rounds, under five minutes on two cores",
    )
    group.addoption(
        "--budget",
        type=float,
        default=None,
        dest="eva_budget",
        metavar="SECONDS",
        help="with --benchmark: check and measure everything worth it in this time, see bench/session",
    )
    group.addoption(
        "--bench-out",
        type=Path,
        default=RESULTS,
        dest="eva_out",
        help="folder of the results (default: bench/results)",
    )
    group.addoption(
        "--official",
        type=Path,
        default=None,
        dest="eva_official",
        help="EVA-01/eva of a checkout of the official code: its step is timed too",
    )


def pytest_configure(config):
    # torch's profiler, which weighs the variants, reports each start and stop on stderr otherwise.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    folder = config.option.eva_official
    if folder is not None and not (folder / official.FILE).is_file():
        raise pytest.UsageError(
            f"--official {folder}: no {official.FILE} there; give the folder EVA-01/eva of a "
            "checkout of the official code"
        )
    asked = any(getattr(config.option, name, None) for name in ASKS_FOR_TIMING)
    if not config.option.eva_timed and not asked:
        config.option.benchmark_disable = True
    config.stash[_STATE] = State(
        timed=config.option.eva_timed or asked,
        write=config.option.eva_timed,
        quick=config.option.eva_quick,
        official=folder,
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """With --budget the stages of `bench.session` run in place of the tests."""
    if config.option.eva_budget is None:
        return None
    if not config.option.eva_timed:
        raise pytest.UsageError("--budget SECONDS goes with --benchmark")
    from bench.session.__main__ import run

    try:
        outcomes = run(config.option.eva_budget, config.option.eva_out)
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None
    good = ("done", "not begun")
    return pytest.ExitCode(any(o["outcome"] not in good for o in outcomes))


@dataclass(slots=True)
class State:
    """What this run does and has found."""

    timed: bool
    write: bool
    quick: bool
    official: Path | None = None
    """Folder of the official code, if its step shall be timed."""
    entries: list[dict] = field(default_factory=list)
    predictions: list[dict] = field(default_factory=list)

    pace: Pace | None = None
    """Of --quick."""

    def settings(self) -> Settings:
        """Of the next case. Skips the test where --quick has no time left for it."""
        if self.pace is None:
            return Settings(seconds=4.0, rounds=40, least_rounds=9)
        found = self.pace.next()
        if found is None:
            pytest.skip(f"--quick ends after {self.pace.seconds:.0f} s; without it everything runs")
        return found


_STATE = pytest.StashKey[State]()


def pytest_collection_modifyitems(session, config, items):
    """Under --quick the whole step comes first: what the others leave out is worth less."""
    state = config.stash[_STATE]
    if state.timed and state.quick:
        items.sort(key=lambda item: not item.nodeid.startswith("bench/test_training.py"))
        state.pace = Pace(len(items))


def state_of(config: pytest.Config) -> State:
    return config.stash[_STATE]


@pytest.fixture
def bench_state(request) -> State:
    return request.config.stash[_STATE]


@pytest.fixture
def run_case(benchmark, bench_state):
    """Runs the case that `make` sets up: numbers always; timed in interleaved rounds with
    --benchmark. What pytest-benchmark times itself, for its own table and files, is the eva_fast
    variant."""

    def run(make: Callable[[], Case]) -> None:
        settings = bench_state.settings() if bench_state.timed else None
        chosen = _choose_kernels(make()) if bench_state.timed else {}
        torch.manual_seed(0)
        case = make()
        benchmark.group = f"{case.subject} {case.mode}"
        ours = case.variants[OURS].call
        if settings is None:
            check_agreement(case)
            benchmark.pedantic(ours)
            return
        entry = {**measure(case, settings), "kernels": chosen}
        bench_state.entries.append(entry)
        speedup = entry["variants"][OURS]["speedup"]
        benchmark.extra_info.update(shape=case.shape, speedup=speedup)
        benchmark.pedantic(ours, rounds=1 if not case.warm or bench_state.quick else 3)

    return run


def _choose_kernels(case: Case) -> dict:
    """As a run does: the faster kernels for this very shape run from now on. `case` is spent."""
    if not case.weigh:  # its work is done elsewhere, or runs no op
        return {}
    what = {"bench": [case.subject, case.mode], "shape": case.shape}
    found = settle(case.variants[OURS].call, torch.device(case.device), what)
    return {
        op: {"kind": choice.implementation, "milliseconds": choice.milliseconds}
        for op, choice in found.items()
    }


def pytest_terminal_summary(terminalreporter, config):
    state = config.stash[_STATE]
    if not state.entries and not state.predictions:
        return
    from bench.report import prediction_table, table

    if state.entries:
        terminalreporter.section("eva_fast: medians of interleaved rounds, speed-up with quartiles")
        terminalreporter.write(table(state.entries))
    if state.predictions:
        terminalreporter.section("eva_fast: predicted against measured steps")
        terminalreporter.write(prediction_table(state.predictions))
    if not state.write:
        return
    paths = config.stash.get(_PATHS, [])
    for path in paths:
        terminalreporter.write_line(f"wrote {path}")


_PATHS = pytest.StashKey[list]()


def pytest_sessionfinish(session):
    config = session.config
    state = config.stash.get(_STATE, None)
    if state is None or not state.write or not (state.entries or state.predictions):
        return
    from bench.report import merge, write_report

    header = {**machine.header(), "rates": machine.rates()}
    out = config.option.eva_out
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{machine.slug(header)}.json"
    old = json.loads(path.read_text()) if path.exists() else None
    data = merge(old, header, state.entries, state.predictions)
    with atomic_write(path) as draft:  # what was measured before must not be lost
        draft.write_text(json.dumps(data, indent=1) + "\n")
    config.stash[_PATHS] = [path, *write_report([path], out)]
