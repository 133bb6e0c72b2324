"""The old name of `settle`, until every caller has moved."""

from eva_fast.ops.registry import Runs
from eva_fast.ops.settle import settle

__exported__ = (Runs,)


def choose_kernels(step, device, what, parts=None):
    return {
        op: {"kind": choice.implementation, "milliseconds": choice.milliseconds}
        for op, choice in settle(step, device, what, parts).items()
    }
