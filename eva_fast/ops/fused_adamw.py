"""The optimiser that runs `adamw`: one call for all parameters that share their settings."""

import inspect
import itertools
from typing import Any

import torch
from torch import Tensor, nn

from eva_fast.ops import copies as kept
from eva_fast.ops.adamw import adamw_unchecked, check_tensors
from eva_fast.ops.shards import is_shard, local


class _Call:
    """The parameters of one call of `adamw` and all that belongs to them, in lists."""

    def __init__(self, group: int):
        self.group = group
        self.params: list[Tensor] = []
        self.copies: list[Tensor] = []
        self.largest: list[Tensor] = []
        self.exp_avgs: list[Tensor] = []
        self.exp_avg_sqs: list[Tensor] = []
        self.steps: list[Tensor] = []
        self.decays: list[float] = []
        self.noted: list[tuple[Tensor, Tensor]] = []
        """Copies and largest magnitudes, each with the parameter that the call writes it of."""
        self.places: list[int] = []
        """Of its parameters among all."""
        self.sharded = False

    def add(
        self,
        place: int,
        p: Tensor,
        copy: Tensor | None,
        largest: Tensor | None,
        state: dict[str, Tensor],
        weight_decay: float,
    ) -> None:
        self.places.append(place)
        self.params.append(p)
        self.sharded |= is_shard(p)
        self.exp_avgs.append(state["exp_avg"])
        self.exp_avg_sqs.append(state["exp_avg_sq"])
        self.steps.append(state["step"])
        self.decays.append(weight_decay)
        if copy is not None:
            self.copies.append(copy)
            self.noted.append((copy, p))
        if largest is not None:
            self.largest.append(largest)
            self.noted.append((largest, p))

    def arguments(self, grads: list[Any]) -> list[Any]:
        """The lists as `adamw` takes them, with its share of the gradients of all parameters; of
        sharded tensors this process's shards."""
        lists: list[Any] = [
            *(self.params, self.copies, [grads[place] for place in self.places]),
            *(self.exp_avgs, self.exp_avg_sqs),
        ]
        if self.sharded:
            lists = [[local(t) for t in tensors] for tensors in lists]
        return [*lists, self.steps, self.decays]


class FusedAdamW(torch.optim.AdamW):
    """torch.optim.AdamW in one pass over memory; its state dict and torch's are interchangeable.

    Parameters are float32 masters. copies: {parameter: tensor of the compute dtype} that each step
    rewrites, and notes as current (`eva_fast.ops.copies`); largest: {parameter: its largest magnitudes},
    written and noted likewise (`eva_fast.ops.largest`). `step(grad_scale=...)` takes a factor of
    all gradients, float32 [] on the device, NaN to skip the step. Groups with the same lr, betas and
    eps run in one call. For a captured CUDA graph give lr as a tensor on the device. Sharded
    parameters (DTensor) are updated shard by shard.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-6,
        weight_decay: float = 0.05,
        copies: dict[Tensor, Tensor] | None = None,
        largest: dict[Tensor, Tensor] | None = None,
    ):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        self.copies, self.largest = dict(copies or {}), dict(largest or {})
        self._key: Any = None
        self.calls: list[_Call] = []
        """What the last step ran; another list when something moved or changed its form."""

    # torch guards these against its compiler, which their first call therefore imports: more than a
    # second, for what no one compiles here.
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)

    @torch.no_grad()
    def step(self, closure=None, *, grad_scale: Tensor | None = None):  # type: ignore[override]
        """Updates every parameter that has a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        params = [p for group in self.param_groups for p in group["params"]]
        grads = [p.grad for p in params]
        for call in self._ready_calls(params, grads):
            group, steps = self.param_groups[call.group], call.steps
            lr = self._rate(group["lr"], steps[0].device)
            # a skipped step (scale not finite) does not count
            if grad_scale is None:
                torch._foreach_add_(steps, 1)
            else:  # one each: of a single tensor PyTorch reads the value on the host
                torch._foreach_add_(steps, [torch.isfinite(grad_scale).float()] * len(steps))
            # a skipped step rounds nothing: a copy that is behind stays so for its reader to see
            noted = [pair for pair in call.noted if kept.is_current(*pair)]
            adamw_unchecked(
                *call.arguments(grads), lr, *group["betas"], group["eps"], grad_scale, call.largest
            )
            for copy, parameter in noted:
                kept.note(copy, parameter)
        return loss

    def allocate(self) -> None:
        """Makes the moments of every parameter now, 0 as at their first step: a checkpoint then
        holds all of them, and a captured step finds them where they stay."""
        for group in self.param_groups:
            for p in group["params"]:
                self._state(p)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Of load_state_dict, too: other moments. A copied or unpickled optimiser has parameters of
        # its own and starts without copies.
        super().__setstate__(state)
        self.__dict__.setdefault("copies", {})
        self.__dict__.setdefault("largest", {})
        self._key, self.calls = None, []

    def _ready_calls(self, params: list[Tensor], grads: list[Any]) -> list["_Call"]:
        """The calls of `adamw` that make up a step: gathered and checked when something changed, as
        which parameters have gradients, their shapes, or which groups share their settings; else the
        last step's."""
        settings = []
        for group in self.param_groups:
            lr = group["lr"]
            lr = id(lr) if isinstance(lr, Tensor) else lr
            settings.append((lr, tuple(group["betas"]), group["eps"]))
        key = (
            [settings.index(s) for s in settings],
            [group["weight_decay"] for group in self.param_groups],
            [grad is None for grad in grads],
            _layouts(params),
            len(self.state),
        )
        if key != self._key:
            self.calls = self._gather(key[0], grads)
            self._key = (*key[:4], len(self.state))
        return self.calls

    def _gather(self, shares: list[int], grads: list[Any]) -> list["_Call"]:
        """shares: of each group, the first one with the same settings."""
        calls: dict[Any, _Call] = {}
        places = itertools.count()
        for first, group in zip(shares, self.param_groups):
            for p, place in zip(group["params"], places):
                if grads[place] is None:
                    continue
                copy, largest = self.copies.get(p), self.largest.get(p)
                kind = first, p.device, copy is not None, largest is not None
                call = calls.setdefault(kind, _Call(first))
                call.add(place, p, copy, largest, self._state(p), group["weight_decay"])
        for call in calls.values():
            check_tensors(*[*call.arguments(grads), call.largest])
        return list(calls.values())

    def _state(self, p: Tensor) -> dict[str, Tensor]:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), device=p.device)
            state["exp_avg"] = torch.zeros_like(p, memory_format=torch.contiguous_format)
            state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.contiguous_format)
        elif state["step"].device != p.device:  # torch's default AdamW keeps steps on the host
            state["step"] = state["step"].to(p.device)
        return state

    def _rate(self, lr: float | Tensor, device: torch.device) -> Tensor:
        if isinstance(lr, Tensor):
            return lr.to(device, torch.float32)
        return torch.full((), lr, device=device)


_PLAIN = {Tensor, nn.Parameter}


def _layouts(params: list[Tensor]) -> tuple[Any, ...]:
    """What a kernel relies on, and `p.data = other` or `module.to(...)` can change: another shape,
    dtype or device has other memory, or is a view of another size or stride."""
    if set(map(type, params)) <= _PLAIN:
        return tuple(tuple(map(of, params)) for of in _FORM)
    return tuple((p.shape, p.dtype, p.device, p.is_contiguous()) for p in params)


_FORM = (Tensor.data_ptr, Tensor.numel, Tensor.is_contiguous)
