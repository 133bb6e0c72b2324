"""The training loop. Nothing in a step waits for the device; log points do."""

import logging
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eva_fast.config import OptimConfig, RunConfig
from eva_fast.train.guard import NonFiniteError
from eva_fast.train.optimizer import gradient_norm
from eva_fast.train.schedule import learning_rate
from eva_fast.train.session import Session
from eva_fast.train.stop import StopRequest
from eva_fast.train.telemetry import Telemetry

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Length and places of a run."""

    total_steps: int
    warmup_steps: int
    batches_per_epoch: int
    checkpoints: Path
    options: dict[str, Any]
    """The resolved options, kept in every checkpoint."""
    picture: Callable[[int], None] | None = None
    """Makes the picture of a step."""


def train(
    session: Session, plan: Plan, optim: OptimConfig, run: RunConfig, telemetry: Telemetry
) -> str | None:
    """Trains from `session.step` to the end of `plan`.

    Returns None, or the name of the signal that stopped it early; either way the last step is in a
    checkpoint. RuntimeError from the data and NonFiniteError leave a checkpoint too.
    """
    model, guard, optimizer = session.model.train(), session.guard, session.optimizer
    batches = iter(session.loader)
    clock = _Clock(session, optim.batch_size, plan)
    saved_at, saved_time = session.step, time.monotonic()

    def save() -> None:
        nonlocal saved_at, saved_time
        if session.step > saved_at:
            session.save(plan.checkpoints, run.keep_checkpoints, plan.options)
        saved_at, saved_time = session.step, time.monotonic()

    @contextmanager
    def between_steps():
        """The session is whole here: a stop for bad data or numbers loses nothing."""
        try:
            yield
        except (RuntimeError, ValueError):
            save()
            raise

    with StopRequest() as stop:
        while session.step < plan.total_steps and stop.signal_name is None:
            rate = learning_rate(
                session.step,
                total=plan.total_steps,
                warmup=plan.warmup_steps,
                peak=optim.lr,
                minimum=optim.min_lr,
                start=optim.warmup_lr,
            )
            for group in optimizer.param_groups:
                group["lr"] = rate

            with between_steps():
                batch = next(batches)
            loss = torch.zeros((), device=session.device)
            optimizer.zero_grad(set_to_none=True)
            for images, mask in zip(
                batch.images.chunk(optim.accumulate), batch.mask.chunk(optim.accumulate)
            ):
                with torch.no_grad():
                    target = session.teacher(images, mask)
                part = model.loss(images, mask, target) / optim.accumulate
                guard.scale(part).backward()
                loss += part.detach()
            norm = guard.unscale(gradient_norm(model))
            guard.step(optimizer, loss, norm, optim.clip_grad)
            if session.ema is not None:
                session.ema.update()
            _add(session.window, loss, norm)
            session.step += 1

            telemetry.advance(session.step)
            last = session.step == plan.total_steps
            if session.step % run.log_every == 0 or last:
                with between_steps():
                    telemetry.record(**clock.read(rate))
            if plan.picture and run.picture_every and session.step % run.picture_every == 0:
                plan.picture(session.step)
            if _due(session.step - saved_at, run.checkpoint_every) or _due(
                (time.monotonic() - saved_time) / 60, run.checkpoint_minutes
            ):
                save()
        save()
    return stop.signal_name


def _due(passed: float, every: float | None) -> bool:
    return bool(every) and passed >= every  # type: ignore[operator]


@torch.no_grad()
def _add(window: torch.Tensor, loss: torch.Tensor, norm: torch.Tensor) -> None:
    """Sums a step into the window unless it was skipped; stays on the device."""
    seen = torch.stack([loss.double(), norm.double(), torch.ones_like(loss, dtype=torch.float64)])
    window += torch.where(seen.isfinite().all(), seen, torch.zeros_like(seen))


class _Clock:
    """Turns the sums since the last log point into the line of metrics.jsonl."""

    def __init__(self, session: Session, batch_size: int, plan: Plan):
        self.session, self.batch_size, self.plan = session, batch_size, plan
        self.start = self.mark = time.monotonic()
        self.first_step = self.step = session.step
        self.waited = session.loader.wait_seconds

    def read(self, rate: float) -> dict[str, Any]:
        """Reads the device. NonFiniteError if too many steps were skipped in a row."""
        session, plan = self.session, self.plan
        loss, norm, count = session.window.tolist()
        session.window.zero_()
        skipped = session.guard.check()
        now, waited = time.monotonic(), session.loader.wait_seconds
        seconds, steps = max(now - self.mark, 1e-9), session.step - self.step
        per_step = (now - self.start) / (session.step - self.first_step)
        record = {
            "step": session.step,
            "epoch": round(session.step / plan.batches_per_epoch, 4),
            "loss": loss / count if count else None,
            "lr": rate,
            "grad_norm": norm / count if count else None,
            "images_per_second": round(steps * self.batch_size / seconds, 2),
            "data_wait": round((waited - self.waited) / seconds, 4),
            "seconds": round(now - self.start, 2),
            "seconds_left": round(per_step * (plan.total_steps - session.step), 1),
            "skipped_steps": skipped,
            "bad_images": session.loader.bad_count,
        }
        self.mark, self.step, self.waited = now, session.step, waited
        return record


__all__ = ["NonFiniteError", "Plan", "train"]
