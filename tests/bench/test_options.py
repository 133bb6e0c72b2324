"""`--benchmark` is the project's own option, and pytest-benchmark's `--benchmark-*` stay theirs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import conftest

ROOT = Path(__file__).parents[2]


def run(*words, out):
    command = [sys.executable, "-m", "pytest", "bench/test_ops.py", "-p", "no:cacheprovider"]
    only = ["-k", "negative_cosine and forward", f"--bench-out={out}"]
    own = {name: value for name, value in os.environ.items() if "PYTEST_XDIST" not in name}
    environment = {**own, "OMP_NUM_THREADS": "1"}  # pytest-benchmark times nothing beside others
    return subprocess.run(
        [*command, *only, *words], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_plain_run_checks_and_times_nothing(tmp_path):
    done = run(out=tmp_path / "r")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "medians of interleaved rounds" not in done.stdout
    assert "Rounds" not in done.stdout
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_own_option_together_with_pytest_benchmarks(tmp_path):
    theirs = tmp_path / "theirs.json"
    words = ("--benchmark", "--quick", f"--benchmark-json={theirs}", "--benchmark-min-rounds=1")
    done = run(*words, out=tmp_path / "r")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "medians of interleaved rounds" in done.stdout
    assert len(json.loads(theirs.read_text())["benchmarks"]) == 1
    (results,) = (tmp_path / "r").glob("*.json")
    (found,) = json.loads(results.read_text())["entries"]
    assert found["subject"] == "negative_cosine"
    assert found["variants"]["eva_fast"]["speedup"]["reference"]["median"] > 0
    assert {p.suffix for p in (tmp_path / "r").iterdir()} == {".json", ".md", ".png"}


@pytest.mark.parametrize("name", conftest.ASKS_FOR_TIMING)
def test_pytest_benchmarks_options_alone_time_and_write_no_results(name):
    options = dict.fromkeys(conftest.ASKS_FOR_TIMING, None)
    own = {"eva_timed": False, "eva_quick": False, "eva_official": None}
    config = SimpleNamespace(
        option=SimpleNamespace(**options, **own, benchmark_disable=False), stash=pytest.Stash()
    )
    conftest.pytest_configure(config)
    assert config.option.benchmark_disable and not conftest.state_of(config).timed
    config.option.benchmark_disable = False
    setattr(config.option, name, True)
    conftest.pytest_configure(config)
    assert not config.option.benchmark_disable
    assert conftest.state_of(config).timed and not conftest.state_of(config).write


def test_a_wrong_folder_of_the_official_code_is_named(tmp_path):
    done = run(f"--official={tmp_path}", out=tmp_path / "r")
    assert done.returncode == 4
    assert "EVA-01/eva of a checkout" in done.stderr


def test_abbreviation_is_no_option(tmp_path):
    done = run("--bench", out=tmp_path / "r")
    assert done.returncode != 0
    assert "unrecognized arguments: --bench" in done.stderr
