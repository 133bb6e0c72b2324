"""JSON and YAML from anywhere are plain values, or one error that names the file."""

import os
import subprocess
import sys

import pytest

from eva_fast import documents
from eva_fast.config import Config
from eva_fast.documents import read_json, read_object, read_yaml
from eva_fast.errors import UsageError

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi")
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [{','.join([f'*{a}'] * 10)}]}}\n" for a, b in zip("abcdefgh", "bcdefghi")
)


def write(tmp_path, content):
    path = tmp_path / "x.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    "text, why",
    [
        (LAUGHS + "lr: *i", "aliases stand for 2,345,679,"),
        (MERGES, "aliases stand for 370,370,"),
        ("a: &a [*a]", "contains itself"),
        ("- " * 5000, "too deep"),
        ("a: [" * 5000, "too deep"),
        ("x: " + "[" * 100 + "]" * 100, "more than 64 deep"),
        ("lr: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("lr: !!python/name:os.system", "could not determine a constructor"),
        ("out: !!timestamp 2021-13-45", "month must be in 1..12"),
        ("lr: !!int ''", "is not YAML"),
        ("out: !!timestamp x", "is not YAML"),
        ("track: !!bool x", "is not YAML"),
        ("steps: 0x_", "is not YAML"),
        ("steps: 1" + "0" * 5000, "is not YAML"),
        ("? [a]\n: b", "is not YAML"),
        ("a: 1\n---\nb: 2", "single document"),
        ("a: \x00", "special characters"),
        (b"a: \xff", "no text in UTF-8"),
        ("a: 1".encode("utf-16"), "no text in UTF-8"),
    ],
)
def test_what_is_no_yaml(tmp_path, little_memory, text, why):
    path = write(tmp_path, text)
    with pytest.raises(UsageError, match=rf"x\.yaml is (not YAML|no text).*{why}|{why}"):
        read_yaml(path)
    with pytest.raises(UsageError):
        Config.from_yaml(path)


def test_aliases_that_are_few_are_taken(tmp_path):
    found = read_yaml(write(tmp_path, "a: &a [1, 2]\nb: [*a, *a]\nc: {<<: {d: 3}}"))
    assert found == {"a": [1, 2], "b": [[1, 2], [1, 2]], "c": {"d": 3}}


def test_a_date_is_text(tmp_path):
    """A folder of images may be called so."""
    assert Config.from_yaml(write(tmp_path, "data: 2024-01-31")).data.data == "2024-01-31"


@pytest.mark.parametrize("text", ["[" * 100_000, "{", "", "1" + "0" * 5000, '{"a": \x00}'])
def test_what_is_no_json(tmp_path, text):
    with pytest.raises(UsageError, match=r"x\.yaml is no JSON"):
        read_json(write(tmp_path, text))


def test_what_is_no_object(tmp_path):
    with pytest.raises(UsageError, match="must hold a JSON object, not a list"):
        read_object(write(tmp_path, "[1]"))


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "absent", "loop"])
def test_what_is_no_file(tmp_path, kind):
    """None is waited for, none read without end."""
    path = tmp_path / "x"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    for read in (read_json, read_yaml):
        with pytest.raises(FileNotFoundError, match=f"cannot read {path}"):
            read(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "MOST_BYTES", 4 << 20)
    with pytest.raises(UsageError, match="larger than 4 MB"):
        read_json(write(tmp_path, " " * (5 << 20)))


def test_a_pipe_of_a_shell(tmp_path):
    code = "import sys, eva_fast.config as c; print(c.Config.from_yaml(sys.argv[1]).optim.lr)"
    found = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c '{code}' <(echo 'lr: 0.25')"],
        capture_output=True,
        text=True,
    )
    assert found.stdout == "0.25\n", found.stderr


@pytest.mark.parametrize(
    "text, why",
    [
        ("1: 2", "lines of `option: value`"),
        ("true: 3", "lines of `option: value`"),
        ("[lr]", "lines of `option: value`"),
        ("recipe: [a]", "unknown recipe"),
        ("recipe: mae-b16\nbatch_size: 1" + "0" * 400, "batch_size"),
        ("lr: 1" + "0" * 400, "lr must be of type float"),
        ("teacher: {a: b}", "teacher must be text"),
        ("objective: [a]", "objective must be text"),
        ("data: {a: b}", "data must be text"),
        ("data: [3]", "data must be text"),
        ("lr: {" + ", ".join(f"k{n}: {n}" for n in range(5000)) + "}", r"lr must .{,300}$"),
    ],
    ids=lambda text: text[:20],
)
def test_options_of_the_wrong_kind(tmp_path, text, why):
    from eva_fast.train.resolve import setting_of

    with pytest.raises(UsageError, match=why):
        setting_of(Config.from_yaml(write(tmp_path, text)))


def test_data_as_yaml_has_it(tmp_path):
    for text, data in (
        ("data: builtin", "builtin"),
        ("data: [/a, /b]", ["/a", "/b"]),
        ("data: [[/a, 0.7], [/b, 0.3]]", [["/a", 0.7], ["/b", 0.3]]),
    ):
        assert Config.from_yaml(write(tmp_path, text)).data.data == data
