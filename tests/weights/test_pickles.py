"""Pickles from anywhere take no memory by a number and change nothing that is not theirs."""

import io
import pickle
import struct
import zipfile

import pytest
import torch

from eva_fast.train.checkpoint_reader import _Unpickler
from eva_fast.weights import read
from eva_fast.weights.pickles import Unpickler

GIGABYTES = struct.pack("<Q", 1 << 35)


@pytest.mark.parametrize(
    "code",
    [
        b"\x80\x05" + pickle.BYTEARRAY8 + GIGABYTES + b".",
        b"\x80\x05" + pickle.BINBYTES8 + GIGABYTES + b".",
        b"\x80\x04" + pickle.BINUNICODE8 + GIGABYTES + b".",
        b"\x80\x04" + pickle.FRAME + GIGABYTES + b"N.",
        b"N" + pickle.LONG_BINPUT + b"\xff\xff\xff\x7f.",
    ],
    ids=["bytearray", "bytes", "text", "frame", "memo"],
)
def test_a_few_bytes_reserve_nothing(code, little_memory):
    try:
        Unpickler(code).load()
    except (pickle.UnpicklingError, EOFError, ValueError):
        return


def test_names_are_refused_unless_they_are_known():
    with pytest.raises(pickle.UnpicklingError, match=r"refers to os\.system, which is not allowed"):
        Unpickler(b"cos\nsystem\n(S'true'\ntR.").load()


@pytest.mark.parametrize(
    "owner",
    [
        b"ctorch.distributed.checkpoint.metadata\nMetadata\n",
        b"ctorch.distributed.checkpoint.metadata\n_MEM_FORMAT_ENCODING\n(I0\ntR",
    ],
    ids=["class", "constant"],
)
def test_what_all_share_is_not_changed(owner):
    with pytest.raises(pickle.UnpicklingError, match="sets attributes of what it does not own"):
        _Unpickler(owner + b"(N}(S'version'\nI7\nutb.").load()


def bytearray_pickle():
    return b"\x80\x02}(X\x01\x00\x00\x00wcbuiltins\nbytearray\nK\x05\x85Ru."


def test_torch_s_own_door_to_memory_is_shut(tmp_path):
    """torch.load(weights_only=True) takes `bytearray(1 << 35)`, which fills 32 GB."""
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(3)}, buffer)
    with zipfile.ZipFile(buffer) as sound, zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        for name in sound.namelist():
            data = bytearray_pickle() if name.endswith("data.pkl") else sound.read(name)
            file.writestr(name, data)
    assert torch.load(tmp_path / "x.pt", weights_only=True) == {"w": bytearray(5)}
    torch.save({"w": torch.ones(3)}, tmp_path / "y.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "z.pt").write_bytes(
        (tmp_path / "y.pt").read_bytes() + bytearray_pickle()  # anywhere in it
    )
    for name in ("x.pt", "z.pt"):
        with pytest.raises(ValueError, match="reserves memory by a number"):
            read(tmp_path / name)


def test_a_compressed_archive_is_refused(tmp_path):
    torch.save({"w": torch.zeros(1 << 16)}, tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as sound,
        zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as file,
    ):
        for name in sound.namelist():
            file.writestr(name, sound.read(name))
    with pytest.raises(ValueError, match="it is compressed"):
        read(tmp_path / "y.pt")


@pytest.mark.parametrize("archive", [True, False])
def test_a_tensor_larger_than_its_file(tmp_path, archive):
    """One number that stands for a terabyte, wherever it is copied."""
    wide = torch.zeros(1).expand(1 << 38)
    torch.save({"w": wide}, tmp_path / "x.pt", _use_new_zipfile_serialization=archive)
    with pytest.raises(ValueError, match="does not hold all of 'w'"):
        read(tmp_path / "x.pt")
