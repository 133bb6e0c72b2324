"""`eva-fast doctor`."""

from eva_fast.cli.words import show


def doctor(aot: bool = False, all: bool = False, json: bool = False) -> None:
    """Show what is installed and which kernels run.

    Args:
        aot: compile every Triton kernel for A100, H100 and B200 (needs no GPU) and show registers,
            shared memory, spills, tensor-core instructions and wide loads.
        all: every choice of kernels that was measured here and kept on disk, not the newest alone.
        json: print JSON instead of tables.
    """
    if aot:
        from eva_fast.inspect.aot import aot_report, aot_table

        rows = aot_report()
        show(rows, None if json else aot_table(rows))
    else:
        from eva_fast.inspect.doctor import diagnose, render

        report = diagnose(all_measured=all)
        show(report, None if json else render(report))
