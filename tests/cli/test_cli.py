"""The command line: help, wrong words, one YAML."""

import io
import logging

import pytest
import yaml

from eva_fast import cli
from eva_fast.config import Config
from eva_fast.errors import UsageError


def run(capsys, *words):
    try:
        cli.main(list(words))
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("words", [["--help"], ["pretrain", "--help"], ["eval", "--help"]])
def test_help(capsys, words):
    code, out, _ = run(capsys, *words)
    assert code == 0 and "usage: eva-fast" in out


def test_help_names_every_option_of_pretrain(capsys):
    _, out, _ = run(capsys, "pretrain", "--help")
    for name in Config().options():
        assert f"--{name.replace('_', '-')}" in out, name


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "which command?"),
        (["train"], "unknown command 'train'; did you mean pretrain?"),
        (["pretrain", "--lr", "fast"], "--lr must be a number, got 'fast'"),
        (["pretrain", "--lr", "-1"], "--lr must be 0 or more"),
        (["pretrain", "--stesp", "3"], "--steps"),
        (["pretrain", "--config"], "--config needs a path"),
        (["pretrain", "--config", "nope.yaml"], "nope.yaml"),
        (["pretrain", "--model", "resnet50"], "unknown model"),
        (["pretrain", "--data", "nowhere"], "nowhere"),
        (["pretrain", "--resume", "auto"], "--resume auto needs --out"),
        (["eval", "nowhere"], "nowhere"),
    ],
)
def test_wrong_words(capsys, words, message):
    code, out, err = run(capsys, *words)
    assert code == 2 and out == ""
    assert err.startswith("error: ") and message in err
    assert "eva_fast." not in err and "class" not in err


@pytest.mark.parametrize("command", ["pretrain", "profile"])
def test_flags_win_over_the_file(tmp_path, capsys, monkeypatch, command):
    seen = []

    def stop(config, **_):
        seen.append(config)
        raise UsageError("enough seen")

    monkeypatch.setattr("eva_fast.inspect.profile.profile", stop)
    monkeypatch.setattr("eva_fast.recipes.pretrain.run", stop)
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"lr": 0.5, "steps": 7, "resume": "auto"}))
    code, _, err = run(capsys, command, f"--config={path}", "--steps", "9", "--out", "there")
    assert code == 2 and "enough seen" in err
    (config,) = seen
    assert (config.optim.lr, config.optim.steps) == (0.5, 9)
    assert (config.run.resume, str(config.run.out)) == ("auto", "there")
    run(capsys, command)  # what one call read from a file is gone in the next
    assert seen[1] == Config()


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    """A ValueError that is nobody's wrong use is a bug: exit status and message must not hide it."""

    def planted(_):
        raise ValueError("planted")

    monkeypatch.setattr("eva_fast.recipes.pretrain.run", planted)
    with pytest.raises(ValueError, match="planted"):
        cli.main(["pretrain"])


def test_an_interrupt_is_no_traceback(capsys, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("eva_fast.recipes.pretrain.run", interrupt)
    code, _, err = run(capsys, "pretrain")
    assert code == 130 and err == "interrupted\n"


def test_a_name_that_the_terminal_cannot_write_ends_no_command(monkeypatch):
    def says():
        """Prints."""
        print("a\udcff \N{GREEK SMALL LETTER ALPHA}")

    written = io.BytesIO()
    for encoding in ("utf-8", "ascii"):
        out = io.TextIOWrapper(written, encoding)
        monkeypatch.setattr("sys.stdout", out)
        monkeypatch.setitem(cli.main.__globals__["COMMANDS"], "doctor", says)
        cli.main(["doctor"])
        out.flush()
        out.detach()
    assert written.getvalue() == "a\\udcff α\n".encode() + b"a\\udcff \\u03b1\n"


def test_what_torch_notes_for_itself_stays_out():
    """Its caches' statistics at exit, behind "interrupted" for example."""
    logger = logging.getLogger("torch")
    before = logger.level
    logger.setLevel(logging.NOTSET)
    try:
        with pytest.raises(SystemExit):
            cli.main(["--version"])
        assert logger.getEffectiveLevel() == logging.WARNING
    finally:
        logger.setLevel(before)


@pytest.mark.parametrize(
    "words, teacher", [([], "own"), (["--teacher", "none"], "none"), (["--teacher", "hog"], "hog")]
)
def test_eval_with_its_runs_teacher_none_or_another(monkeypatch, words, teacher):
    asked = []
    monkeypatch.setattr(
        "eva_fast.evaluation.evaluator.evaluate",
        lambda run, data, probe, teacher, **_: asked.append(teacher),
    )
    monkeypatch.setattr("eva_fast.evaluation.table.render", lambda found: "")
    cli.main(["eval", "runs/x", *words])
    assert asked == [teacher]
