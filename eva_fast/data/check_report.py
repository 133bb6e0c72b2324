"""The result of `check` as a table for a person."""

from typing import Any

from rich import filesize
from rich.console import Group
from rich.table import Table
from rich.text import Text

from eva_fast.data.sources.left_out import printable


def render(result: dict[str, Any]) -> Group:
    """What `check` returned, for rich's `Console.print`."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))

    def row(name: str, value: str) -> None:
        table.add_row(name, Text(value))  # as it is: [brackets] in names are no markup

    row("images", f"{result['images']:,} ({result['checked']:,} of them read)")
    if result["bytes"]:
        total = filesize.decimal(result["total_bytes_estimate"])
        row("bytes an image", f"{_spread(result['bytes'])}; about {total} in all")
    row("width, height", f"{_spread(result['width'])}; {_spread(result['height'])} pixels")
    row("formats", _counts(result["formats"]))
    row("modes", _counts(result["modes"]))
    if result["labels"]:
        row("classes", f"{len(result['labels'])}: {_counts(result['labels'])}")
    if result["left_out"]:
        row("left out", _counts(result["left_out"]))
    row("smaller than the crop", f"{result['smaller_than_crop']:,}")
    share = result["unreadable_count"] / result["checked"]
    row("unreadable", f"{result['unreadable_count']:,} ({share:.2%})")
    rate = result["images_per_second_per_core"]
    row("speed", f"{rate:,.0f} images/s a core (decode, crop, mask; reading not counted)")
    if result["cores_needed"]:
        wanted = result["gpu_images_per_second"]
        row("cores needed", f"{result['cores_needed']} for {wanted:,.0f} images/s")
    if result["contact_sheet"]:
        row("contact sheet", result["contact_sheet"])
    bad = [
        Text(f"  {printable(item['name'])}: {printable(item['reason'])}", style="yellow")
        for item in result["unreadable"]
    ]
    hidden = result["unreadable_count"] - len(result["unreadable"])
    if hidden:
        bad.append(Text(f"  and {hidden:,} more", style="yellow"))
    return Group(table, *bad)


def _spread(values: dict[str, float] | None) -> str:
    if values is None:
        return "unknown"
    return f"{values['min']:,.0f} to {values['max']:,.0f}, median {values['median']:,.0f}"


def _counts(counts: dict[str, int], most: int = 12) -> str:
    shown = [f"{name or 'none'} {count:,}" for name, count in list(counts.items())[:most]]
    return printable(", ".join(shown)) + (
        f" and {len(counts) - most} more" if len(counts) > most else ""
    )
