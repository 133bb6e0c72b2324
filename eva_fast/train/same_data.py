"""A run goes on with the data it began with, also where that has moved or lost its bad files."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eva_fast.data.sources.base import Source
from eva_fast.data.sources.fingerprint import same_contents
from eva_fast.data.sources.mixed import MixedSource
from eva_fast.data.sources.restored import RestoredSource, restored
from eva_fast.errors import UsageError
from eva_fast.train import checkpoint

if TYPE_CHECKING:
    from eva_fast.config import Config

log = logging.getLogger(__name__)


def as_before(source: Source, config: "Config", out: Path, found: Path) -> Source:
    """`source` with the numbers its images had when the checkpoint `found` of the run in `out` was
    written. UsageError where it is named otherwise than then and nothing says that it is the same."""
    saved = checkpoint.run_state(found)
    loader = saved["loader"]
    names = loader["feed"].get("names")
    if names is not None:
        source = restored(source, names, out / "bad_images.jsonl")
        _check_count(loader["feed"].get("images"), source, out)
    other = config.changed(saved["options"]).get("data")
    contents = loader.get("contents") or {}
    if config.data.data_moved:
        return source
    if other is None:
        if contents and source.names == names and not same_contents(source, contents):
            log.warning(
                "images have other bytes than when %s began, under the same names: it goes on with "
                "those that are there now", out,
            )  # fmt: skip
        return source
    then, now = other
    reason = _difference(source, names, contents)
    if reason is None:
        log.info("the data %s is that of %s: the same names, the same bytes", now, then)
        return source
    raise UsageError(
        f"{out} was started with other options (data: {then!r} -> {now!r}), and {reason}. Give the same "
        "data to go on with it, data_moved=True (--data-moved) if it is the same in another place, or "
        "another out="
    )


def _check_count(then: int | None, source: Source, out: Path) -> None:
    """UsageError where images have come, or are gone that were not on record as bad."""
    parts = source.sources if isinstance(source, MixedSource) else [source]
    gone = sum(len(part.gone) for part in parts if isinstance(part, RestoredSource))
    if gone:
        log.info("%d images are gone, all of them recorded as bad: it goes on without them", gone)
    if then is None or then == len(source):
        return
    if then < len(source):
        remedy = "put the new ones elsewhere"
    else:
        remedy = (
            "those that bad_images.jsonl names may be gone, the others have to be put back (an empty "
            "file under the old name is enough)"
        )
    raise UsageError(
        f"{out} was started with {then:,} images, and the data holds {len(source):,} now: {remedy}, or "
        "begin another run with another out="
    )


def _difference(source: Source, names: list[str] | None, contents: dict[str, str]) -> str | None:
    """Why this may not be the data of these names and contents."""
    if names is None or source.names is None:
        return "nothing tells whether they are the same images"
    if source.names != names:
        return "they hold other images, or under other names"
    if not contents:
        return "the images of streams are not compared"
    if not same_contents(source, contents):
        return "images of the same name differ"
    return None


def without_names(state: dict[str, Any]) -> dict[str, Any]:
    """A loader's state that fits any data of as many images."""
    feed = {key: value for key, value in state["feed"].items() if key != "names"}
    return {**state, "feed": feed, "contents": None}
