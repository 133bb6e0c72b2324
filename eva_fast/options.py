"""One option of a run: its default, who may change it, and how a value becomes its kind.

The classes of options stand beside the components that they configure (`model/config.py`,
`train/config.py`, ...); `eva_fast.config` puts them together. Nothing here is slow to import.
"""

import dataclasses
import os
import reprlib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from eva_fast.errors import UsageError

T = TypeVar("T")
NUMBERS, WHOLE_NUMBERS = tuple[float, ...] | None, tuple[int, ...] | None
# On the command line text; from Python also a dataset, a list of folders or a teacher module.
TextOrObject = Annotated[Any, "text on the command line"]


NAMES = Annotated[str, "names with commas; from Python also a list of them"]


def option(default: T, *, resume: bool) -> T:
    """A dataclass field. resume: whether a run that goes on may have another value than it began
    with; a field with a plain default may not."""
    return dataclasses.field(default=default, metadata={"resume": resume})


def may_change(field: dataclasses.Field) -> bool:
    """Whether a run that goes on may have another value of this field."""
    return field.metadata.get("resume", False)


def require(ok: bool, message: str) -> None:
    """UsageError with that message unless `ok`."""
    if not ok:
        raise UsageError(message)


def user_path(path: Any) -> Any:
    """`path` with its `~` or `~name` as the home folder that the shell would put there."""
    try:
        found = Path(path).expanduser() if isinstance(path, str | os.PathLike) else path
    except RuntimeError:
        raise UsageError(f"{path}: there is no such user's home folder") from None
    if isinstance(found, Path) and "\0" in str(found):
        raise UsageError(f"no path has a null character, got {shown(path)}")
    return found


def user_text(value: Any) -> Any:
    """A name or path given as text, with `~` replaced at its beginning and behind `NAME:`."""
    if isinstance(value, str):
        name, colon, file = value.rpartition(":")
        if file.startswith("~"):
            return f"{name}{colon}{user_path(file)}"
    return value


def shown(value: Any) -> str:
    """A value as a message quotes it: a long one by its beginning and end."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200


def plain(value: Any) -> Any:
    """`value` as YAML can hold it; an object given from Python as its description."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [plain(v) for v in value]
    if getattr(value, "ndim", None) == 0:  # a number of NumPy's or torch's
        return value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    kind = value if isinstance(value, type) else type(value)
    return f"{kind.__module__}.{kind.__qualname__} object"


def fit(name: str, kind: Any, value: Any) -> Any:
    """`value` as the option's type wants it, or a UsageError; numbers in YAML may come as text, from
    Python as NumPy's and torch's."""
    if kind is TextOrObject or (value is None and type(None) in get_args(kind)):
        return value
    if hasattr(value, "tolist"):
        value = value.tolist()
    if kind in (Path | None, Path):
        require(value != "", f"{name} is empty: give a path, or leave it out")
        if isinstance(value, str | os.PathLike):
            return Path(value)
    elif kind in (int, int | None):
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
            return value
    elif kind in (float, float | None):
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                return float(value)  # YAML reads 1e-3 as text
            except (ValueError, OverflowError):
                pass
    elif kind in (bool, bool | None):
        if isinstance(value, bool):
            return value
    elif kind == tuple[float, float]:
        if isinstance(value, list | tuple) and len(value) == 2:
            return tuple(fit(name, float, v) for v in value)
    elif kind in (NUMBERS, WHOLE_NUMBERS):
        one = float if kind == NUMBERS else int
        if isinstance(value, list | tuple) and value:
            return tuple(fit(name, one, v) for v in value)
    elif kind is NAMES:
        if isinstance(value, str | list | tuple) and all(isinstance(v, str) for v in value):
            return str(value) if isinstance(value, str) else ",".join(value)
        raise UsageError(f"{name} must be names, a list or with commas, got {shown(value)}")
    elif kind in (str, str | None):
        if isinstance(value, str):
            return str(value)  # NumPy's is one too, and no YAML
    else:  # a Literal, or one or None
        literal = kind if get_origin(kind) is Literal else kind.__args__[0]
        choices = literal.__args__
        if isinstance(value, str) and value in choices:
            return value
        raise UsageError(f"{name} must be one of {', '.join(choices)}, got {shown(value)}")
    wanted = getattr(kind, "__name__", None) or str(kind)
    raise UsageError(f"{name} must be of type {wanted}, got {shown(value)}")
