"""Which ops have a bench."""

import pkgutil

import bench.ops
from eva_fast.ops import registry


def subjects() -> list[str]:
    """Every op that has a bench, and what else lies in bench/ops: a block."""
    found = {module.name for module in pkgutil.iter_modules(bench.ops.__path__)}
    ops = [op.name for op in registry.ops() if op.name in found]
    return ops + sorted(found - set(ops))
