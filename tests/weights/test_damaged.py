"""Weight files that are damaged or hostile: each ends in one clear error, and none runs anything."""

import pickle
import random
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from eva_fast.weights import read
from tests.weights.scripted import Small


class Touch:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def archive(path, pickled, storages=(), compression=zipfile.ZIP_STORED):
    """A zip file that looks like a TorchScript archive around a given pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("m/data.pkl", pickled)
        file.writestr("m/constants.pkl", pickle.dumps(()))
        for key, data in storages:
            file.writestr(f"m/data/{key}", data)
    return path


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
