"""The fused ops. Each is a function with its plain-PyTorch version as `.reference`; its module,
`eva_fast.ops.NAME`, says what it computes, and `eva-fast doctor` lists them all.

`<op>_forward` and `<op>_backward` are the same without checks and autograd, for functions that
bring their own backward. Which implementation of an op runs is decided in `choose`; what there is to
decide about, in `registry`. An op from elsewhere is declared with `define` too.

Every module here is imported, and what its `__all__` names is found here as well.
"""

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

from eva_fast.ops.choose import chosen, force, implementation, register, set_kernels
from eva_fast.ops.fused_adamw import FusedAdamW
from eva_fast.ops.registry import Case, Op, Trial, define

__all__ = [
    "Case",
    "FusedAdamW",
    "Op",
    "Trial",
    "chosen",
    "define",
    "force",
    "implementation",
    "register",
    "set_kernels",
]

for _module in pkgutil.iter_modules(__path__):
    if not _module.ispkg:
        _found = importlib.import_module(f"{__name__}.{_module.name}")
        for _name in getattr(_found, "__all__", ()):
            globals()[_name] = getattr(_found, _name)
            __all__ += [_name]

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...
