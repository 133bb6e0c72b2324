"""Every code block of every page runs, or says why it does not."""

import os
import shutil

import pytest

from eva_fast.ops import choose, registry
from tests.pages import materials
from tests.pages.blocks import ROOT, Block, blocks, of_file, ours, pages
from tests.pages.runner import Reader, look_at, type_command
from tests.pages.small import all_small, here, small

NAMED = {str(path.relative_to(ROOT)): path for path in pages()}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return materials.write(tmp_path_factory.mktemp("materials"))


@pytest.fixture
def folder(files, tmp_path, monkeypatch):
    """The current folder, with the materials in it; what a page changes in this process ends with it."""
    home = tmp_path / "page"
    shutil.copytree(files, home, symlinks=True, copy_function=os.link)
    monkeypatch.chdir(home)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    known = {op.name for op in registry.ops()}
    with all_small():
        yield home
    for op in [op for op in registry.ops() if op.name not in known]:
        registry.forget(op)
    choose.set_kernels("auto")
    choose.forget_measured()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_the_code_of_a_page(name, folder):
    reader = Reader(name)
    for block in of_file(NAMED[name]):
        reader.follow(block)


def test_blocks_are_found_with_what_is_said_before_them():
    text = """
a <!-- not run: not of this block -->
```text
x
```
1. b
   <!-- before: make -->
   <!-- not run: takes
   hours -->

   ```bash
   run && go  # now
   ```
~~~
```bash
~~~
"""
    one, two, three = blocks(text)
    assert one == Block("text", "x\n", 3, "not of this block")
    assert two == Block("bash", "run && go  # now\n", 11, "takes\n   hours", "make")
    assert two.commands() == ["run", "go"]
    assert (three.language, three.text) == ("", "```bash\n")


def test_a_comment_is_of_the_block_behind_it_alone():
    one, two = blocks("<!-- not run: x -->\n\nwords\n```bash\na\n```\n```bash\nb\n```\n")
    assert one.reason is None and two.reason is None


@pytest.mark.parametrize(
    ("block", "wrong"),
    [
        (Block("", "eva-fast pretrain\n", 7), "page:7: .*no language of bash"),
        (Block("sh", "eva-fast pretrain\n", 7), "page:7: .*no language of bash"),
        (Block("bash", "eva-fast pretrain --batch-sise 3\n"), "SystemExit: 2"),
        (
            Block("bash", "eva-fast pretrain --batch-sise 3\n", 0, "long"),
            "did you mean --batch-size",
        ),
        (Block("bash", "eva-fast doctor | head\n"), "needs a shell"),
        (Block("bash", "if\n", 0, "long"), "CalledProcessError"),
        (Block("bash", "no-such-program\n"), "no-such-program: command not found"),
        (Block("python", "x = (\n", 0, "long"), "SyntaxError"),
        (Block("python", "print(1)\n# 2\n"), "AssertionError: 1"),
        (Block("python", "print(1)\n# 2...\n"), "AssertionError: 1"),
        (Block("yaml", "batch_sise: 3\n"), "did you mean 'batch_size'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_in_a_page_is_said(block, wrong, folder):
    with pytest.raises(AssertionError, match=wrong):
        Reader("page").follow(block)


def test_what_a_page_may_say(folder):
    reader = Reader("page")
    reader.follow(Block("python", "x = 3\nprint(x)\nprint(4)\n# 3\n# 4\n"))
    reader.follow(Block("python", "print(x, 'and so on')\n# 3 and...\n", before="touch made"))
    reader.follow(Block("bash", "echo hello > told.txt\nA=b eva-fast doctor --json > found.json\n"))
    assert (folder / "told.txt").read_text() == "hello\n" and (folder / "made").exists()
    assert (folder / "found.json").read_text().startswith("{")
    assert type_command("cat told.txt") == "hello\n"
    look_at(
        Block("bash", "torchrun --nproc-per-node 8 -m eva_fast pretrain --recipe eva01\n", 0, "x")
    )


def test_commands_of_this_package_are_known():
    assert ours("A=1 .venv/bin/eva-fast eval runs/s") == ["eval", "runs/s"]
    assert ours("torchrun --nproc-per-node 2 -m eva_fast pretrain") == ["pretrain"]
    assert ours("pip install eva-fast") is None and ours("it's") is None


def test_small_stays_small():
    given = dict(recipe="eva01", data="/data/photos", epochs=3.0, accumulate=8)
    once = small(given)
    assert small(once) == once
    assert (once["teacher"], once["steps"], once["batch_size"]) == ("ViT-L-14.pt", 2, 8)
    assert here("--data /data/photos --out=/checkpoints/a ./data/x") == (
        "--data data/photos --out=checkpoints/a ./data/x"
    )
