"""The command line: help, wrong words, one YAML."""

import pytest
import yaml

from eva_fast import cli


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
    from eva_fast.config import Config

    _, out, _ = run(capsys, "pretrain", "--help")
    for name in Config().options():
        assert f"--{name.replace('_', '-')}" in out, name


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "Missing subcommand"),
        (["train"], "Unrecognized"),
        (["pretrain", "--lr", "fast"], "could not convert"),
        (["pretrain", "--lr", "-1"], "lr must be 0 or more"),
        (["pretrain", "--stesp", "3"], "--steps"),
        (["pretrain", "--config"], "needs a YAML file"),
        (["pretrain", "--config", "nope.yaml"], "nope.yaml"),
        (["pretrain", "--model", "resnet50"], "unknown model"),
        (["pretrain", "--data", "nowhere"], "nowhere"),
        (["eval", "nowhere"], "nowhere"),
    ],
)
def test_wrong_words(capsys, words, message):
    code, out, err = run(capsys, *words)
    assert code == 2
    assert message in out + err


def test_flags_win_over_the_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"lr": 0.5, "steps": 7}))
    words, start = cli._words(["pretrain", "--config", str(path), "--steps", "9"])
    assert words == ["pretrain", "--steps", "9"]
    assert (start.optim.lr, start.optim.steps) == (0.5, 7)
