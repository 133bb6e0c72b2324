"""Hashes in names, and endings that are none."""

import hashlib
import logging

import pytest

from eva_fast.weights.hashes import check_hash

CONTENT = b"weights"
DIGEST = hashlib.sha256(CONTENT).hexdigest()


def named(folder, name):
    (folder / name).write_bytes(CONTENT)
    return folder / name


@pytest.mark.parametrize("ending", [DIGEST[:8], DIGEST[:20], DIGEST])
def test_right(tmp_path, ending):
    check_hash(named(tmp_path, f"net-{ending}.pth"))


@pytest.mark.parametrize("ending", ["deadbeef", "0" * 7 + "a", "a" * 64])
def test_wrong(tmp_path, ending):
    with pytest.raises(ValueError, match=f"starts with {DIGEST[: len(ending)]}.*ends in {ending}"):
        check_hash(named(tmp_path, f"net-{ending}.pth"))


@pytest.mark.parametrize("ending", ["20231015", "20240229123000", "00012000", "100000000"])
def test_dates_and_steps_are_no_hashes(tmp_path, caplog, ending):
    """Digits alone are a date or a number of steps; the difference is said, and no more."""
    with caplog.at_level(logging.WARNING, "eva_fast"):
        check_hash(named(tmp_path, f"clip-{ending}.safetensors"))
    assert f"{ending} is no hash of it" in caplog.text


@pytest.mark.parametrize(
    "name", ["net.pth", "net-v2.pth", "net-00001.pth", "clip-2023-10-15.pt", "step_00012000.pt"]
)
def test_no_ending(tmp_path, caplog, name):
    check_hash(named(tmp_path, name))
    assert not caplog.text
