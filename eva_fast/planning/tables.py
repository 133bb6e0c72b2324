"""A plan as text for the terminal: rich tables, every figure labelled counted or predicted."""

from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.table import Table

if TYPE_CHECKING:
    from eva_fast.planning.result import Option, Plan


def _memory_table(plan: "Plan", option: "Option") -> Table:
    table = Table(title="memory of one GPU (activations counted, the rest arithmetic)")
    table.add_column("kind")
    table.add_column("GB", justify="right")
    for kind, size in option.memory.by_kind().items():
        if size:
            table.add_row(kind, f"{size / 1e9:.2f}")
    table.add_section()
    table.add_row("total", f"{option.memory.total / 1e9:.2f}")
    table.add_row("device", f"{plan.device.memory_bytes / 1e9:.2f}")
    return table


def _options_table(plan: "Plan") -> Table:
    table = Table(title="ways to cut the batch (time predicted)")
    table.add_column("eva-fast pretrain ...")
    for name in ("images a pass", "GB", "fits", "images/s", "MFU"):
        table.add_column(name, justify="right")
    for option in plan.options:
        table.add_row(
            option.flags,
            str(option.micro_batch),
            f"{option.memory.total / 1e9:.1f}",
            "yes" if option.fits else "no",
            f"{option.images_per_second(plan.gpus):,.0f}",
            f"{option.prediction.mfu:.1%}",
            style="bold" if option is plan.best else None,
        )
    return table


def _share_table(option: "Option") -> Table:
    table = Table(title="one step on one GPU (predicted)")
    table.add_column("part")
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")
    total = sum(option.prediction.parts.values())
    for part, seconds in sorted(option.prediction.parts.items(), key=lambda kv: -kv[1]):
        if seconds:
            table.add_row(part, f"{seconds * 1e3:.1f}", f"{seconds / total:.1%}")
    table.add_section()
    table.add_row("step", f"{option.prediction.seconds * 1e3:.1f}", "")
    return table


def _line(plan: "Plan", what: str, option: "Option") -> str:
    return (
        f"{what} ({option.flags}): {option.memory.total / 1e9:.1f} GB, "
        f"{'fits' if option.fits else 'does not fit'}; predicted "
        f"{option.images_per_second(plan.gpus):,.0f} images/s, {_time(plan.days_of(option))}, "
        f"MFU {option.prediction.mfu:.1%}"
    )


def _time(days: float) -> str:
    """The largest unit of which there is at least one; else seconds."""
    for unit, seconds in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if days * 86400 >= seconds:
            return f"{days * 86400 / seconds:.3g} {unit}"
    return f"{days * 86400:.3g} seconds"


def render(plan: "Plan") -> Group:
    """The plan as something rich can print."""
    count = plan.count.summary()
    lines = [
        f"{plan.model}, {plan.objective} with teacher {plan.teacher}, on {plan.gpus} x "
        f"{plan.device.title}, batch {plan.batch}, {plan.precision}, "
        f"{plan.formulation}, sharding {plan.sharding}",
        f"counted, an image: {count['tflop_per_image']:.4g} TFLOP, "
        f"{count['gb_touched_per_image']:.3g} GB touched, "
        f"{count['mb_saved_per_image']:.4g} MB saved; {count['launches']} launches a pass",
    ]
    best = plan.best
    if best is None:
        return Group(*lines, "does not fit", _options_table(plan))
    lines += [
        f"for {plan.epochs:.4g} epochs of {plan.images:,.0f} images:",
        _line(plan, "as asked", plan.asked),
        _line(plan, "quickest that fits", best),
    ]
    return Group(*lines, _memory_table(plan, best), _share_table(best), _options_table(plan))


def to_text(plan: "Plan", width: int = 100) -> str:
    """The plan as plain text."""
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(render(plan))
    return capture.get()
