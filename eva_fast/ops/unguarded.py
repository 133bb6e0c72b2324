"""The first call of an op without torch's compiler, where that is not in use.

torch guards the body of a `custom_op` against its compiler, so that it is never traced, and imports
`torch._dynamo` for it at the first call: sympy, distributed tensors and 800 modules more, which take
longer than torch itself. While nothing has imported the compiler, nothing can compile, and the body
needs no guard.
"""

import inspect
import sys
from collections.abc import Callable
from typing import Any

from torch._library.custom_ops import OPDEFS

_GUARD = "__dynamo_disable"  # where torch keeps the guarded body once it was made


def leave_compiler_out(operator: str) -> None:
    """Puts the guard of a custom op ("eva_fast::NAME") off until the compiler is there. Does nothing to
    an operator of another kind."""
    for body in getattr(OPDEFS.get(operator), "_backend_fns", {}).values():
        plain = getattr(body, "__wrapped__", None)
        if plain is not None and not hasattr(plain, _GUARD):
            setattr(plain, _GUARD, _until_there(plain))


def _until_there(plain: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        disable = getattr(sys.modules.get("torch._dynamo"), "disable", None)
        if disable is None:
            return plain(*args, **options)
        guarded = disable(inspect.unwrap(plain), wrapping=False)
        setattr(plain, _GUARD, guarded)
        return guarded(*args, **options)

    return call
