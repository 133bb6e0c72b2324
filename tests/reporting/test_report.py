"""What a report's page says, and what it says where there is nothing to say."""

import builtins
import html
import json
import os
import re
import shutil

import pytest

import eva_fast
from eva_fast import cli
from eva_fast.errors import MissingFileError, UsageError
from eva_fast.reporting.pictures import FRAMES
from tests.reporting.runs import draw, line, make_run

pytest.importorskip("bokeh", reason="pip install 'eva-fast[report]'")
HOSTILE = "</script><script>alert(1)</script>"


def page_of(*runs, **options):
    return eva_fast.report(list(runs), **options).read_text()


def text_of(page):
    """The page's words, without its scripts, style and tags."""
    page = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", page).split()))


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "runs" / "a", [line(s) for s in range(10, 401, 10)], [200, 400])


def test_one_run(run, tmp_path):
    assert eva_fast.report(run) == run / "report.html"
    text = text_of((run / "report.html").read_text())
    assert "finished, 400 steps" in text
    assert re.search(r"What was set .{,80} value batch_size 32 steps 400 Curves", text)
    assert "native 3 ms, against torch 15.5 ms" in text and "nothing else runs it there" in text
    assert "Learning rate" in text and "Accuracy" not in text and "Notes" not in text
    assert eva_fast.report(str(run), out=tmp_path / "new" / "page.html").is_file()


def test_several_runs_say_first_what_differs(run, tmp_path):
    other = make_run(run.parent / "b", [line(10)], lr=3e-4, seed=1, out="x")
    path = eva_fast.report([run, other, run])
    assert path == tmp_path / "runs" / "report.html"
    text = text_of(path.read_text())
    assert "2 runs compared" in text and "at step 10 of 400" in text
    differs = text[text.index("What differs") : text.index("Curves")]
    assert re.findall(r"\b(lr|seed|batch_size|out)\b", differs) == ["lr", "seed"]
    assert "0.001 0.0003" in differs


def test_runs_of_the_same_name_are_told_apart(run, tmp_path):
    other = shutil.copytree(run, tmp_path / "more" / "a")
    text = text_of(page_of(run, other))
    assert "runs/a" in text and "more/a" in text


def test_a_run_that_was_interrupted_skipped_and_went_back(tmp_path):
    lines = [line(10, seconds=5), line(20, seconds=10, skipped_steps=3), line(10, seconds=12)]
    starts = [{"step": 0, "time": "2026-01-02T03:04:05+00:00"}, {"step": 5, "time": "?"}]
    run = make_run(tmp_path / "a", lines, environment={"starts": starts})
    text = text_of(page_of(run))
    assert "went on from step 5 after an interruption" in text
    assert "went back from step 20" in text and "3 skipped by step 20" in text
    assert "Dotted upright lines" in text and "Crosses" in text and "2026-01-02 03:04 UTC" in text


def test_names_and_values_are_text(tmp_path):
    name = HOSTILE.replace("/", "\N{DIVISION SLASH}") + "'\" $$x$$"
    lines = [line(1, **{HOSTILE: 1.0, "a}{b": 2.0})]
    environment = {"device": HOSTILE, "kernels": {HOSTILE: {"implementation": HOSTILE}}}
    run = make_run(tmp_path / name, lines, [1], environment=environment, data=HOSTILE)
    for runs in ([run], [run, make_run(tmp_path / "b", lines)]):
        page = page_of(*runs)
        assert "<script>alert" not in page and "&lt;script&gt;alert" in page
        assert page.count("<script") == page.count("</script>") == 4


def test_nothing_lies_elsewhere(run):
    page = re.sub(r"<script\b.*?</script>", "", page_of(run), flags=re.DOTALL)
    assert not re.findall(r"https?:|//\w+\.|@import|url\(", page)
    sources = re.findall(r"(?:src|href)=\"([^\"]{5})", page)
    assert len(sources) == 3 and set(sources) == {"data:"}


@pytest.mark.parametrize("log", [None, "", '{"step": 1, "los'])
def test_a_run_that_has_logged_nothing(tmp_path, log):
    run = make_run(tmp_path / "a")
    (run / "metrics.jsonl").unlink()
    if log is not None:
        (run / "metrics.jsonl").write_text(log)
    text = text_of(page_of(run))
    assert "nothing logged yet" in text and "Nothing has been logged yet" in text
    assert ("not whole yet" in text) == bool(log)
    both = page_of(run, make_run(tmp_path / "b", [line(10)]))
    assert "nothing logged yet" in text_of(both) and 'class="plot"' in both


def test_what_is_left_out_is_said(tmp_path):
    lines = [line(s, total=9000) for s in range(1, 9001)]
    run = make_run(tmp_path / "a", lines, range(1, 121), steps=9000)
    (run / "pictures" / "step_000000001.png").write_bytes(b"no picture")
    with (run / "metrics.jsonl").open("a") as file:
        file.write("\n{")
    page = page_of(run)
    text = text_of(page)
    assert "a point is the mean of 15 log lines" in text
    assert f"Of the 120 pictures of a {FRAMES - 1} are shown" in text
    assert "cannot be read: step_000000001.png" in text
    assert "The last line of a's metrics.jsonl is not whole yet" in text
    assert "1 lines of a's metrics.jsonl cannot be read" in text
    assert page.count("<img ") == FRAMES - 1
    assert len(page) < 3 << 20


def test_the_last_picture_of_a_run_has_its_last_step(run):
    draw(run / "picture.png", 5)
    assert 'data-steps="200 400"' in page_of(run)
    shutil.rmtree(run / "pictures")
    page = page_of(run)
    assert 'data-step="400"' in page and 'type="range"' not in page


def test_kernels_of_a_run_that_chose_none(tmp_path):
    forced = make_run(tmp_path / "a", [line(1)], environment={"kernels": {}}, kernels="torch")
    assert "all of them torch, by the option kernels" in text_of(page_of(forced))
    old = make_run(tmp_path / "b", [line(1)], environment={"kernels": {}})
    assert "not written down which kernels" in text_of(page_of(old))


def test_what_an_environment_of_anybody_holds(tmp_path):
    for number, kernels in enumerate([3, [], {"op": 3}, {"op": {"milliseconds": 3, "why": []}}]):
        starts = [{"starts": 3}, {"starts": [3, 4]}, {"starts": [{}, {"step": -1}]}, {}][number]
        run = make_run(
            tmp_path / f"{number}", [line(1)], environment={"kernels": kernels, **starts}
        )
        assert "Environment" in text_of(page_of(run))


@pytest.mark.parametrize("epochs", [".inf", ".nan", "-1", "true", "1e400", "1e30"])
def test_how_long_a_run_of_senseless_epochs_is(run, epochs):
    (run / "metrics.jsonl").write_text(json.dumps(line(10)) + "\n")
    (run / "config.yaml").write_text(f"epochs: {epochs}\nsteps: -5\nbatch_size: 4\n")
    assert re.search(r"at step 10 of [\d,]{2,9};", text_of(page_of(run)))


def test_half_characters_are_written_as_numbers(run, tmp_path):
    """Of folders whose names are in another encoding, and of whatever JSON and YAML hold."""
    other = make_run(tmp_path / os.fsdecode(b"a\xffb"), [line(1, **{"\ud800": 3.0})])
    environment = json.loads((other / "environment.json").read_text())
    (other / "environment.json").write_text(json.dumps({**environment, "device": "\ud801"}))
    page = page_of(run, other)
    assert "a\\udcffb" in text_of(page) and "\\ud801" in text_of(page)
    documents = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.DOTALL)
    assert documents and all(json.loads(document) for document in documents)


def wrong(match, *runs, kind=UsageError, **options):
    with pytest.raises(kind, match=match):
        eva_fast.report(list(runs), **options)


def test_what_is_no_run(run, tmp_path):
    wrong("needs a run's folder")
    for runs in (3, None, [run, 4], [b"a"]):
        with pytest.raises(UsageError, match="runs is a run's folder, or a list of them"):
            eva_fast.report(runs)
    wrong("null character", "a\0b")
    wrong("null character", run, out="a\0b")
    wrong("no such user's home folder", run, out="~nobody-is-called-so/a.html")
    wrong("cannot look into .*too long", tmp_path / ("a" * 5000))
    wrong("there is no folder .*none", tmp_path / "none", kind=MissingFileError)
    wrong("is not a run's folder.*there are runs in it: a$", run.parent)
    (tmp_path / "empty").mkdir()
    wrong("not a run's folder.*pretrain names as out", tmp_path / "empty")
    wrong("not a run's folder", run / "metrics.jsonl")
    wrong("at most 16 runs", *(shutil.copytree(run, tmp_path / f"{n}") for n in range(17)))
    wrong("cannot write .*is a folder.*out=", run, out=tmp_path)
    (run / "environment.json").write_text("[]")
    wrong("environment.json must hold a JSON object", run)
    (run / "config.yaml").write_text("a: [")
    wrong("config.yaml is not YAML", run)
    (run / "config.yaml").write_text("- a")
    wrong("config.yaml must hold lines", run)


@pytest.mark.parametrize("module", ["bokeh", "jinja2"])
def test_a_library_that_is_not_installed(run, monkeypatch, module):
    real = builtins.__import__
    import importlib

    def missing(name, *rest):
        if name.split(".")[0] == module:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", lambda name: missing(name))
    wrong(r"pip install 'eva-fast\[report\]'", run)


def test_from_the_command_line(run, capsys):
    cli.main(["report", str(run)])
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    for words, said in (([], "needs RUN..."), ([str(run / "no")], "there is no folder")):
        with pytest.raises(SystemExit) as end:
            cli.main(["report", *words])
        assert end.value.code == 2 and said in capsys.readouterr().err


def test_a_real_run(tmp_path):
    """What pretrain writes is what is read: its log, pictures, probes, kernels."""
    result = eva_fast.pretrain(
        out=tmp_path / "run", model="eva_ti_patch8_32", embed_dim=32, depth=1, num_heads=2,
        mlp_hidden=48, teacher="hog", batch_size=4, steps=4, workers=0, device="cpu",
        kernels="torch", progress=False, log_every=1, picture_every=2,
    )  # fmt: skip
    text = text_of(page_of(result.out))
    last = json.loads((result.out / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"loss {last['loss']:.4f}" in text and "finished, 4 steps" in text
    assert 'data-steps="2 4"' in (result.out / "report.html").read_text()
    assert "Notes" not in text
