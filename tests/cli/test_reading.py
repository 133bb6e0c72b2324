"""Words of a command line: each kind of value right and wrong, and how flags are spelt."""

from pathlib import Path

import pytest

from eva_fast.cli.main import read
from eva_fast.config import Config
from eva_fast.errors import UsageError


def config(*words):
    return read(["pretrain", *words]).arguments()["config"]


@pytest.mark.parametrize(
    "words, name, value",
    [
        (["--batch-size", "8"], "batch_size", 8),
        (["--batch_size=8"], "batch_size", 8),
        (["--lr", "1e-4"], "lr", 1e-4),
        (["--lr", "1", "--lr", "2"], "lr", 2.0),
        (["--steps", "None"], "steps", None),
        (["--betas", "0.9", "0.95"], "betas", [0.9, 0.95]),
        (["--betas=0.9,0.95"], "betas", [0.9, 0.95]),
        (["--out", "a b"], "out", "a b"),
        (["--data", "x:0.5,y:0.5"], "data", "x:0.5,y:0.5"),
        (["--no-progress"], "progress", False),
        (["--progress", "False"], "progress", False),
        (["--teacher-moved"], "teacher_moved", True),
        (["--no-whiten"], "whiten", False),
        (["--whiten", "None"], "whiten", None),
        (["--precision", "bf16"], "precision", "bf16"),
    ],
    ids=lambda value: str(value),
)
def test_right_values(words, name, value):
    assert config(*words).options()[name] == value


@pytest.mark.parametrize(
    "words, message",
    [
        (["--steps", "1.5"], "--steps must be a whole number, got '1.5'"),
        (["--min_lr=x"], "--min_lr must be a number, got 'x'"),
        (["--betas", "0.9"], "--betas must be two numbers, got '0.9'"),
        (["--betas", "0.9", "x"], "--betas must be two numbers, got '0.9 x'"),
        (
            ["--precision", "fp4"],
            "--precision must be one of auto, fp32, bf16, fp16, fp8, got 'fp4'",
        ),
        (["--lr"], "--lr needs a number behind it"),
        (["--batch_size"], "--batch_size needs a whole number behind it"),
        (["--lr", "--steps", "3"], "--lr needs a number behind it"),
        (["--betas"], "--betas needs two numbers behind it"),
        (["--betas", "1", "2", "3"], "--betas must be two numbers, got '1 2 3'"),
        (["--teacher-moved", "maybe"], "--teacher-moved must be true or false, got 'maybe'"),
        (["--no-teacher-moved", "yes"], "--no-teacher-moved takes no value, got 'yes'"),
        (["--out="], "--out must be a path, got ''"),
        (["--init-from", ""], "--init-from must be a path, got ''"),
        (["--batch", "3"], "unknown option --batch; did you mean"),
        (["--no-lr"], "unknown option --no-lr; did you mean"),
        (["--xyzzy"], "unknown option --xyzzy; `eva-fast pretrain --help` shows what there is"),
        (["photos"], "'photos' stands where an option is expected"),
    ],
)
def test_wrong_values(words, message):
    with pytest.raises(UsageError) as error:
        config(*words)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "typed, message, shown",
    [
        ("--batch_size", "batch_size 3 is no multiple", "--batch_size 3 is no multiple"),
        ("--lr", "lower the learning rate (lr)", "lower the learning rate (lr)"),
        ("--lr", "lr must be 0 or more", "--lr must be 0 or more"),
        ("--seed", "decode='gpu' needs a GPU", "--decode gpu needs a GPU"),
        ("--seed", "a run goes on in out=, its folder", "a run goes on in --out, its folder"),
        ("--data", "/data/x: no images", "/data/x: no images"),
        ("--data", "OpenAI .pt files, ('a', 1), ...", "OpenAI .pt files, ('a', 1), ..."),
        ("--data", "choose another out=", "choose another --out"),
    ],
)
def test_messages_have_the_flag_as_typed(typed, message, shown):
    assert read(["pretrain", typed, "1"]).as_typed(message) == shown


def test_a_file_gives_what_flags_do_not(tmp_path):
    (tmp_path / "c.yaml").write_text("lr: 0.5\nsteps: 7\n")
    found = config("--steps", "9", "--config", str(tmp_path / "c.yaml"))
    assert (found.optim.lr, found.optim.steps) == (0.5, 9)
    assert config() == Config()


def test_words_of_their_own_and_lists():
    said = read(["data", "check", "--json", "photos"])
    assert said.arguments() == {"json": True, "data": "photos"}
    with pytest.raises(UsageError, match="eva-fast data check needs DATA"):
        read(["data", "check", "--json"])
    said = read(["bench", "report", "--results", "a.json", "b.json", "--out", "c"])
    assert said.arguments() == {"results": (Path("a.json"), Path("b.json")), "out": Path("c")}
