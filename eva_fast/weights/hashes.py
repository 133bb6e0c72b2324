"""Hashes in file names, as torch hub writes them: `mobilenet_v2-b0353104.pth`."""

from __future__ import annotations

import hashlib
import logging
import re
from pathlib import Path

from eva_fast.errors import UsageError

logger = logging.getLogger(__name__)
_ENDING = re.compile(r"-([0-9a-f]{8,64})\.[^.]+$")


def check_hash(path: Path) -> None:
    """Compare the file's sha256 with the beginning of one in its name, if there is any.

    An ending of digits alone can be a date or a number of steps (`clip-20231015.pt`), so there a
    difference is only logged. One of 43 hashes of 8 digits looks like that.
    """
    match = _ENDING.search(path.name)
    if match is None:
        return
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
    found, ending = digest.hexdigest()[: len(match[1])], match[1]
    if found == ending:
        return
    if ending.isdigit():
        logger.warning("%s: %s is no hash of it; taken for a date or a number", path, ending)
        return
    raise UsageError(
        f"{path} is not what its name says: sha256 starts with {found}, the name ends in {ending}. "
        "The file is damaged or another one; rename it if that ending is no hash"
    )
