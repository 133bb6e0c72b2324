"""Weight files: every damaged, wrong or hostile one ends in one clear error, and runs nothing."""

import argparse
import datetime
import hashlib
import io
import logging
import os
import pickle
import random
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from eva_fast.weights import read
from eva_fast.weights.torchscript import read_torchscript


class Touch:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(3, 2)
        self.again = self.inner
        self.sizes = [1, 2]
        self.register_buffer("empty", torch.zeros(0, 4))
        self.register_buffer("numbers", torch.arange(12).view(3, 4).T)
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("brain", torch.randn(5).bfloat16())

    def forward(self, x):
        return self.again(self.inner(x)[:, :1].expand(-1, 3)) + self.sizes[0]


def archive(path, pickled, storages=(), compression=zipfile.ZIP_STORED):
    """A zip file that looks like a TorchScript archive around a given pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("m/data.pkl", pickled)
        file.writestr("m/constants.pkl", pickle.dumps(()))
        for key, data in storages:
            file.writestr(f"m/data/{key}", data)
    return path


def test_torchscript_state_dict(tmp_path):
    model = Small()
    torch.jit.script(model).save(tmp_path / "small.pt")
    weights = read(tmp_path / "small.pt")
    assert weights.kind == "torchscript"
    expected = torch.jit.load(tmp_path / "small.pt").state_dict()
    assert set(weights) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(weights[name], tensor) and weights[name].dtype == tensor.dtype, name


@pytest.mark.parametrize("suffix", [".pt", ".bin"])
def test_torch_and_safetensors(tmp_path, suffix):
    state = {"a.weight": torch.randn(2, 3), "b": torch.arange(3)}
    torch.save({"model": state, "epoch": 4, "lr": [0.1]}, tmp_path / f"x{suffix}")
    save_file(state, tmp_path / "x.safetensors", {"heads": "2"})
    for name, kind in ((f"x{suffix}", "torch"), ("x.safetensors", "safetensors")):
        weights = read(tmp_path / name)
        assert weights.kind == kind and set(weights) == set(state) and len(weights) == 2
        assert all(torch.equal(weights[k], v) for k, v in state.items())
    assert weights.metadata == {"heads": "2"}


@pytest.mark.parametrize(
    "around",
    [
        ["model"],
        ["module"],
        ["state_dict"],
        ["model", "module"],
        ["module", "model"],
        ["model", "state_dict"],
        ["state_dict_ema"],
        ["model_ema", "module"],
        ["teacher"],
        ["ema", "module"],
        ["net"],
        ["network"],
        ["params"],
        ["params_ema"],
        ["student"],
    ],
    ids=".".join,
)
def test_wrappers(tmp_path, around):
    state = {"a": torch.randn(2)}
    wrapped = state
    for key in reversed(around):
        wrapped = {key: wrapped, "epoch": 3, "optimizer": {"state": {0: torch.zeros(1)}}}
    torch.save(wrapped, tmp_path / "x.pt")
    weights = read(tmp_path / "x.pt")
    assert list(weights) == ["a"] and torch.equal(weights["a"], state["a"])


def test_an_average_is_preferred(tmp_path):
    state = {"model": {"a": torch.zeros(1)}, "model_ema": {"a": torch.ones(1)}}
    torch.save(state, tmp_path / "x.pt")
    assert read(tmp_path / "x.pt")["a"] == 1


def test_one_of_several_is_read_and_said(tmp_path, caplog):
    """DINO's checkpoints hold a student and a teacher, which is the average of students."""
    caplog.set_level(logging.INFO, "eva_fast")
    state = {"student": {"module.a": torch.zeros(1)}, "teacher": {"a": torch.ones(1)}, "epoch": 3}
    torch.save(state, tmp_path / "x.pth")
    assert read(tmp_path / "x.pth")["a"] == 1
    assert "'teacher' is read, not 'student'" in caplog.text and "['student']" in caplog.text


def test_an_entry_without_tensors_is_no_state_dict(tmp_path):
    state = {"params": {"lr": 0.1}, "ema": {"decay": 0.99}, "model": {"a": torch.ones(1)}}
    torch.save(state, tmp_path / "x.pth")
    assert list(read(tmp_path / "x.pth")) == ["a"]


@pytest.mark.parametrize(
    "content, hint",
    [
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "git lfs pull",
        ),
        ("<!DOCTYPE html>\n<html><head>Sign in</head></html>", "a web page.*/resolve/"),
        ("\ufeff  <html lang='en'>gone</html>", "a web page"),
        ('{"error": "Repository not found"}', "it is JSON"),
        ("/annex/objects/MD5E-s10--abcdef.pth\n", "git annex get"),
        ("outs:\n- md5: 0123456789\n  path: x.pth\n", "text and begins with 'outs:'"),
    ],
    ids=["lfs", "html", "html with a mark", "json", "annex", "dvc"],
)
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors", "x.bin"])
def test_text_in_place_of_weights(tmp_path, content, hint, name):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=hint):
        read(tmp_path / name)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_prefixes_of_wrapped_modules(tmp_path, prefix, suffix):
    state = {f"{prefix}{name}": torch.ones(1) for name in ("a.weight", "module_b.bias")}
    path = tmp_path / f"x{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    assert set(read(path)) == {"a.weight", "module_b.bias"}


def test_a_prefix_of_some_names_stays(tmp_path):
    save_file({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "x.safetensors")
    assert set(read(tmp_path / "x.safetensors")) == {"module.a", "b"}


def test_options_of_a_training_script_are_harmless(tmp_path):
    """Official checkpoints (EVA, MAE, DeiT) keep their command line beside the weights."""
    nested = argparse.Namespace(a=1, out=tmp_path, device=torch.device("cpu"))
    args = argparse.Namespace(lr=1e-3, betas=(0.9, 0.98), data="/x", nested=nested)
    torch.save({"model": {"a": torch.ones(2)}, "args": args, "epoch": 3}, tmp_path / "x.pth")
    assert torch.equal(read(tmp_path / "x.pth")["a"], torch.ones(2))


def test_a_refused_type_is_named(tmp_path):
    state = {"model": {"a": torch.ones(2)}, "when": datetime.date(2024, 1, 1)}
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"besides tensors \(datetime\.date\).*To convert a file"):
        read(tmp_path / "x.pth")


def test_hostile_pickles_run_nothing(tmp_path):
    victim = tmp_path / "victim"
    payload = pickle.dumps({"state_dict": {"w": torch.ones(2)}, "x": Touch(victim)}, protocol=2)
    (tmp_path / "plain.pt").write_bytes(payload)
    torch.save({"w": torch.ones(2), "x": Touch(victim)}, tmp_path / "zip.pt")
    torch.save(
        {"w": torch.ones(2), "x": Touch(victim)},
        tmp_path / "legacy.pth",
        _use_new_zipfile_serialization=False,
    )
    archive(tmp_path / "script.pt", payload)
    for name in ("plain.pt", "zip.pt", "legacy.pth", "script.pt"):
        with pytest.raises(ValueError, match="never loaded because loading runs code"):
            read(tmp_path / name)
        assert not victim.exists(), name
    pickle.loads(payload)["x"].close()  # the payload does work where pickles are trusted
    assert victim.exists()


@pytest.mark.parametrize(
    "name",
    ["os.system", "builtins.eval", "torch.load", "torch.serialization.load", "torch._utils.x"],
)
def test_no_other_name_is_looked_up(tmp_path, name):
    module, _, function = name.rpartition(".")
    code = f"c{module}\n{function}\n(S'echo'\ntR.".encode()
    with pytest.raises(ValueError, match=f"refers to {name}"):
        read(archive(tmp_path / "x.pt", code))


def test_a_pickle_cannot_change_the_reader(tmp_path):
    """BUILD may set attributes of what the pickle made, of nothing that outlives the file."""
    code = (
        b"c__torch__\nM\n)\x81}(S'w'\nctorch._utils\n_rebuild_tensor_v2\n"
        b"(N}(S'__defaults__'\n(I7\ntutbub."
    )
    path = archive(tmp_path / "x.pt", code)
    with pytest.raises(ValueError, match="sets attributes of what it does not own"):
        read(path)
    torch.jit.script(Small()).save(tmp_path / "small.pt")
    assert read(tmp_path / "small.pt")["inner.weight"].shape == (2, 3)


def test_endlessly_many_names(tmp_path):
    """Thirty modules, each holding the next one twice: a billion names in a few hundred bytes."""
    code = b"c__torch__\nM\n)\x81"
    for _ in range(30):
        code += b"q\x010c__torch__\nM\n)\x81}(S'a'\nh\x01S'b'\nh\x01ub"
    with pytest.raises(ValueError, match="more than 1000000 names"):
        read(archive(tmp_path / "x.pt", code + b"."))


@pytest.mark.parametrize("seed", range(3))
def test_random_damage_to_the_description(tmp_path, seed):
    """Whatever bytes the pickle consists of, the outcome is tensors or a ValueError."""
    generator = random.Random(seed)
    torch.jit.script(Small()).save(tmp_path / "small.pt")
    with zipfile.ZipFile(tmp_path / "small.pt") as file:
        good = file.read("small/data.pkl")
    path = tmp_path / "x.pt"
    for _ in range(150):
        bad = bytearray(good)
        for _ in range(generator.randint(1, 4)):
            bad[generator.randrange(len(bad))] = generator.randrange(256)
        archive(path, bytes(bad), [(str(i), b"\0" * 64) for i in range(6)])
        try:
            weights = read(path)
            assert all(isinstance(weights[name], torch.Tensor) for name in weights)
        except ValueError as error:
            assert str(path) in str(error)


def script_pickle(size=(2, 3), stride=(3, 1), offset=0, key="0", storage="FloatStorage"):
    """Pickle of a module with one tensor `w`, written opcode by opcode."""
    numbers = lambda values: b"(" + b"".join(b"I%d\n" % v for v in values) + b"t"  # noqa: E731
    return (
        b"c__torch__\nM\n)\x81}(S'w'\nctorch._utils\n_rebuild_tensor_v2\n((S'storage'\nctorch\n"
        + storage.encode()
        + b"\nS'%s'\nS'cpu'\nI6\ntQI%d\n" % (key.encode(), offset)
        + numbers(size)
        + numbers(stride)
        + b"I00\nccollections\nOrderedDict\n)Rt"
        + b"Rub."
    )


def test_written_by_hand(tmp_path):
    data = torch.arange(6.0)
    path = archive(tmp_path / "x.pt", script_pickle(), [("0", data.numpy().tobytes())])
    assert torch.equal(read(path)["w"], data.view(2, 3))
    path = archive(tmp_path / "y.pt", script_pickle((2,), (2,), 1), [("0", data.numpy().tobytes())])
    assert read(path)["w"].tolist() == [1.0, 3.0]


@pytest.mark.parametrize(
    "options, compression",
    [
        (dict(size=(2, 4), stride=(4, 1)), zipfile.ZIP_STORED),
        (dict(offset=1), zipfile.ZIP_STORED),
        (dict(size=(2, -3)), zipfile.ZIP_STORED),
        (dict(key="1"), zipfile.ZIP_STORED),
        (dict(storage="TypedStorage"), zipfile.ZIP_STORED),
        (dict(), zipfile.ZIP_DEFLATED),
    ],
    ids=["too_large", "offset", "negative", "no_storage", "no_type", "compressed"],
)
def test_descriptions_that_lie(tmp_path, options, compression):
    data = torch.arange(6.0).numpy().tobytes()
    path = archive(tmp_path / "x.pt", script_pickle(**options), [("0", data)], compression)
    with pytest.raises(ValueError, match=str(path)):
        read(path)["w"]


@pytest.mark.parametrize("keep", [0.98, 0.5, 0.05, 0.0])
@pytest.mark.parametrize("kind", ["script.pt", "zip.pt", "legacy.pth", "x.safetensors"])
def test_truncated(tmp_path, kind, keep):
    path = tmp_path / kind
    state = {f"layer{i}.weight": torch.randn(40, 40) for i in range(4)}
    if kind == "script.pt":
        torch.jit.script(Small()).save(path)
    elif kind == "x.safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip.pt")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ValueError, match="damaged, truncated or no weight file.*expected"):
        read(path)


def test_flipped_byte_in_a_torchscript_archive(tmp_path):
    path = archive(tmp_path / "x.pt", script_pickle(), [("0", b"\x11" * 24)])
    path.write_bytes(path.read_bytes().replace(b"\x11" * 24, b"\x11" * 23 + b"\x12"))
    with pytest.raises(ValueError, match="damaged"):
        read(path)["w"]


@pytest.mark.parametrize("content", [b"", b"hello", b"<html>not found</html>", b"\x80\x02K\x01."])
def test_no_weight_file(tmp_path, content):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=str(path)):
        read(path)


def test_nothing_in_it(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "x.pt")
    save_file({}, tmp_path / "x.safetensors")
    for name in ("x.pt", "x.safetensors"):
        with pytest.raises(ValueError, match="no (state dict|tensors)"):
            read(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read(tmp_path / "nowhere.pt")


def test_hash_in_the_name(tmp_path):
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(3)}, buffer)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    for good in (digest[:8], digest[:16], digest):
        path = tmp_path / f"net-{good}.pth"
        path.write_bytes(buffer.getvalue())
        assert read(path)["w"].shape == (3,)
    wrong = ("a" if digest[0] != "a" else "b") + digest[1:8]
    path = tmp_path / f"net-{wrong}.pth"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=f"sha256 starts with {digest[:8]}.*ends in {wrong}"):
        read(path)
    for plain in ("net-v2.pth", "net-00001.pth", "net.pth"):
        (tmp_path / plain).write_bytes(buffer.getvalue())
        assert "w" in read(tmp_path / plain)


def test_text_tower_is_not_read(tmp_path):
    """Tensors are read one by one: what nobody asks for costs no memory."""
    torch.jit.script(Small()).save(tmp_path / "small.pt")
    tensors, _ = read_torchscript(tmp_path / "small.pt")
    os.remove(tmp_path / "small.pt")
    with pytest.raises(FileNotFoundError):
        tensors["inner.weight"]()
