"""`eva-fast`: pretrain, eval, ablate, report, export, plan, profile, doctor, data check, bench report.

One file a command; `main` reads the words and says what went wrong.
"""

from eva_fast.cli.main import main

__all__ = ["main"]
