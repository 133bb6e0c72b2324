"""The old names of `choose` and `registry`, until every caller has moved."""

from eva_fast.ops.choose import can_run, demanded, implementation, register, set_kernels
from eva_fast.ops.registry import FAMILIES as KINDS
from eva_fast.ops.registry import family_obstacle, find, interpreted

forced = demanded
__exported__ = (KINDS, implementation, interpreted, register, set_kernels)


def usable(kind: str, device_type: str) -> bool:
    return family_obstacle(kind, device_type) is None


def fused_kind(op: str, device_type: str) -> str | None:
    kind = {"cpu": "native", "cuda": "triton"}.get(device_type, "")
    return kind if can_run(op, kind, device_type) else None


def function_of(op: str, kind: str):
    return find(op).function(kind)
