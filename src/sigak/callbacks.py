"""Callbacks with Keras's names and meanings.

A callback sees the run at the end of every epoch with that epoch's figures (`loss`, `accuracy`,
`val_loss`, `val_accuracy`, `lr`, ...). Its state travels with the resume file. As in Keras: an
improvement must exceed `min_delta` in absolute terms, patience acts when the epochs without
improvement reach it (wait >= patience).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from sigak.recipe import Options
from sigak.structures import SigakError

__all__ = [
    "Callback",
    "EarlyStopping",
    "ModelCheckpoint",
    "ReduceLROnPlateau",
    "RunState",
    "TensorBoard",
    "asked_for",
    "restore",
    "states",
]


class RunState(Protocol):
    """What a callback may see and do."""

    folder: Path
    lr_scale: float
    stop: bool

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights that are evaluated (averaged ones where the recipe asks for
        them).
        """

    def set_weights(self, weights: dict[str, Tensor]) -> None: ...

    def save(
        self, path: Path, logs: Mapping[str, float], *, weights_only: bool = False
    ) -> None: ...

    def current_lr(self) -> float: ...


class Callback:
    """Does nothing; override what you need and list what must survive a restart in `state`."""

    state: tuple[str, ...] = ()

    def on_train_begin(self, run: RunState) -> None:
        """Before the first epoch, or the first after a restart."""

    def on_epoch_end(self, run: RunState, epoch: int, logs: Mapping[str, float]) -> str | None:
        """After validation. epoch counts from 1. A returned sentence is shown to the user."""

    def on_train_end(self, run: RunState) -> None:
        """After the last epoch."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {name: getattr(self, name) for name in self.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
        for name in self.state:
            setattr(self, name, state[name])


class _Monitor(Callback):
    """Shared by the three that watch one figure."""

    def __init__(self, monitor: str, mode: str, min_delta: float) -> None:
        if mode not in ("auto", "min", "max"):
            raise SigakError(f"mode must be auto, min or max, received {mode!r}")
        rising = monitor.endswith(("accuracy", "top5", "map", "map50", "miou", "box_iou"))
        falling = "loss" in monitor or "kid" in monitor
        if mode == "auto" and not rising and not falling:
            raise SigakError(
                f"cannot tell whether {monitor!r} should rise or fall; say so with mode min or max"
            )
        self.monitor = monitor
        self.sign = 1.0 if mode == "max" or (mode == "auto" and rising) else -1.0
        self.min_delta = abs(min_delta)
        self.best = -math.inf  # of sign * value

    def improved(self, logs: Mapping[str, float]) -> bool:
        """Whether this epoch is the best so far; remembers it if so."""
        if self.monitor not in logs:
            known = ", ".join(logs)
            raise SigakError(
                f"--monitor {self.monitor!r} is not measured here; measured are {known}"
            )
        value = self.sign * logs[self.monitor]
        if value > self.best + self.min_delta or (self.best == -math.inf and value == value):
            self.best = value
            return True
        return False


class ModelCheckpoint(_Monitor):
    """Write a checkpoint each time `monitor` improves (or every epoch, `save_best_only=False`)."""

    state = ("best", "best_epoch")

    def __init__(
        self,
        path: str | Path = "best.safetensors",
        monitor: str = "val_loss",
        *,
        mode: str = "auto",
        save_best_only: bool = True,
        save_weights_only: bool = False,
    ) -> None:
        """path: inside the run's folder unless absolute; may hold {epoch} and figures, as
        {val_loss:.3f}.
        """
        super().__init__(monitor, mode, 0.0)
        self.path = str(path)
        self.save_best_only = save_best_only
        self.save_weights_only = save_weights_only
        self.best_epoch = 0

    def on_epoch_end(self, run: RunState, epoch: int, logs: Mapping[str, float]) -> str | None:
        better = self.improved(logs)
        if better:
            self.best_epoch = epoch
        if better or not self.save_best_only:
            path = run.folder / self.path.format(epoch=epoch, **logs)
            run.save(path, logs, weights_only=self.save_weights_only)
        return None


class EarlyStopping(_Monitor):
    """Stop when `monitor` has not improved for `patience` epochs; the best weights come back at the
    end.
    """

    state = ("best", "wait", "best_weights", "best_epoch")

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        patience: int = 10,
        min_delta: float = 0.0,
        mode: str = "auto",
        restore_best_weights: bool = True,
        start_from_epoch: int = 0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.patience = max(1, patience)
        self.restore_best_weights = restore_best_weights
        self.start_from_epoch = start_from_epoch
        self.wait = 0
        self.best_epoch = 0
        self.best_weights: dict[str, Tensor] | None = None

    def on_epoch_end(self, run: RunState, epoch: int, logs: Mapping[str, float]) -> str | None:
        if epoch <= self.start_from_epoch:
            return None
        if self.improved(logs):
            self.wait, self.best_epoch = 0, epoch
            if self.restore_best_weights:
                self.best_weights = run.weights()
            return None
        self.wait += 1
        if self.wait < self.patience:
            return None
        run.stop = True
        return (
            f"stopped early: {self.monitor} has not improved for {self.wait} epochs "
            f"(best: epoch {self.best_epoch})"
        )

    def on_train_end(self, run: RunState) -> None:
        if self.best_weights is not None:
            run.set_weights(self.best_weights)


class ReduceLROnPlateau(_Monitor):
    """Multiply the learning rate by `factor` when `monitor` has not improved for `patience`
    epochs.
    """

    state = ("best", "wait", "cooling")

    def __init__(
        self,
        monitor: str = "val_loss",
        *,
        factor: float = 0.1,
        patience: int = 10,
        min_delta: float = 1e-4,
        mode: str = "auto",
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        if not 0.0 < factor < 1.0:
            raise SigakError(f"factor must lie between 0 and 1, received {factor}")
        self.factor, self.patience, self.cooldown, self.min_lr = (
            factor,
            max(1, patience),
            cooldown,
            min_lr,
        )
        self.wait = 0
        self.cooling = 0

    def on_epoch_end(self, run: RunState, epoch: int, logs: Mapping[str, float]) -> str | None:
        if self.cooling > 0:
            self.cooling -= 1
            self.wait = 0
        if self.improved(logs):
            self.wait = 0
            return None
        if self.cooling > 0:
            return None
        self.wait += 1
        lr = run.current_lr()
        if self.wait < self.patience or lr <= self.min_lr:
            return None
        new = max(lr * self.factor, self.min_lr)
        run.lr_scale *= new / lr
        self.wait, self.cooling = 0, self.cooldown
        return f"{self.monitor} stands still: learning rate {lr:.3g} -> {new:.3g}"


class TensorBoard(Callback):
    """Write every figure to `folder`/tensorboard (needs the extra `pip install sigak[log]`)."""

    def on_train_begin(self, run: RunState) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise SigakError(
                "--tensorboard needs tensorboard; install it with `pip install sigak[log]`"
            ) from error
        self.writer = SummaryWriter(str(run.folder / "tensorboard"))

    def on_epoch_end(self, run: RunState, epoch: int, logs: Mapping[str, float]) -> str | None:
        for name, value in logs.items():
            self.writer.add_scalar(name, value, epoch)
        self.writer.flush()
        return None

    def on_train_end(self, run: RunState) -> None:
        self.writer.close()


def asked_for(options: Options, watched: str, *, log: bool) -> list[Callback]:
    """The callbacks a run's options ask for, watching the figure `watched`; log: whether to write
    TensorBoard.
    """
    asked: list[Callback] = []
    if options.reduce_lr:
        asked.append(
            ReduceLROnPlateau(
                watched,
                patience=options.reduce_lr,
                factor=options.reduce_factor,
                min_lr=options.min_lr,
            )
        )
    if options.early_stop:
        asked.append(
            EarlyStopping(watched, patience=options.early_stop, min_delta=options.min_delta)
        )
    if options.tensorboard and log:
        asked.append(TensorBoard())
    return asked


def states(callbacks: Sequence[Callback]) -> list[list[Any]]:
    """What `restore` needs: [name, state] of each."""
    return [[type(callback).__name__, callback.state_dict()] for callback in callbacks]


def restore(callbacks: Sequence[Callback], saved: Sequence[Sequence[Any]]) -> None:
    """Give each callback its saved state; SigakError where they are not the ones of that run."""
    before, now = [name for name, _ in saved], [type(c).__name__ for c in callbacks]
    if before != now:
        raise SigakError(
            f"the run began with the callbacks {', '.join(before)} and cannot go on with "
            f"{', '.join(now)}; give the flags it began with"
        )
    for callback, (_, state) in zip(callbacks, saved, strict=True):
        callback.load_state_dict(state)
