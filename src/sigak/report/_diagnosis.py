"""What the curves of a run say, in words: overfits, underfits, stopped too early, diverged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

__all__ = ["diagnose"]

_GAP = 0.05  # accuracy of train above validation that is called overfitting
_RISE = 0.10  # growth of the validation loss over its lowest value that is called a rise
_FALL = 0.02  # shrinkage of the loss over the last tenth of a run that is called improving
_LOW = 0.70  # train accuracy below which a network that no longer improves is called underfitting


def diagnose(history: Mapping[str, Sequence[float | None]]) -> str:
    """One to three sentences on a run: where it stands, what that is called, what to try.

    `history` holds lists with one value per epoch: loss, val_loss, accuracy and val_accuracy as
    shares, and epoch, the numbers of the epochs (1, 2, ... where missing). All but loss may be
    missing; of a generator val_kid and of a detector
    val_map is read instead. None stands for "not measured", and so does
    NaN, unless a loss ends in it.
    """
    run = _Run(
        epochs=list(history.get("epoch") or range(1, len(history.get("loss") or []) + 1)),
        **{key: list(history.get(key) or []) for key in _SERIES},
    )
    if not run.measured("loss"):
        return "No epoch was recorded."
    if history.get("val_kid"):
        return _generating(run.epochs, history)
    if history.get("val_map"):
        return _detecting(run.epochs, history)
    checks: list[Callable[[_Run], str]] = [
        _diverged, _one_epoch, _not_validated, _rising, _improving, _gaping, _underfitting,
    ]  # fmt: skip
    for check in checks:
        if found := check(run):
            return found
    return f"{_standing(run)}: no sign of overfitting or underfitting."


_LITTLE = 0.01  # average precision by which an epoch must be better to count as progress


def _detecting(epochs: Sequence[Any], history: Mapping[str, Sequence[float | None]]) -> str:
    """What the average precision on held-out pictures says; of a loss that weighs boxes, classes
    and scores against each other its fall alone tells little.
    """
    known = [(v, int(e)) for e, v in zip(epochs, history["val_map"]) if v is not None]
    if not known:
        return "The average precision could not be measured: there were no objects to find."
    (best, place), last = max(known, key=lambda pair: pair[0]), known[-1][1]
    told = f"The average precision on held-out pictures was best in epoch {place}: {best:.1%}."
    before = max((v for v, e in known if e <= 0.8 * last), default=0.0)
    if best <= _LITTLE:
        return told + " Hardly anything was found yet: train for more epochs (--epochs)."
    if place == last or best > before + _LITTLE:
        return told + " It was still rising: train for more (--epochs)."
    return told + " It had stopped rising: more pictures or a larger network would help further."


_WON = 0.1  # discriminator loss below which the generator has little left to learn from


def _generating(epochs: Sequence[Any], history: Mapping[str, Sequence[float | None]]) -> str:
    """What the distance between made and held-out pictures says; losses of adversaries do not tell
    how good the pictures are.
    """
    pairs = zip(epochs, history["val_kid"])
    known = [(value, int(e)) for e, value in pairs if value is not None and math.isfinite(value)]
    if not known:
        return "The distance of the pictures could not be measured: training diverged."
    (first, _), (_, last), (lowest, best) = known[0], known[-1], min(known)
    told = (
        f"The pictures came nearest to held-out ones in epoch {best}: kernel distance "
        f"{lowest:.3g}, after {first:.3g} in the first."
    )
    losses = history.get("discriminator_loss") or [None]
    if losses[-1] is not None and losses[-1] < _WON:
        told += " The discriminator has won: try --label-smoothing 0.1 or a lower --lr."
    elif best == last:
        told += " It was still falling: train for more (--epochs)."
    return told


_SERIES = ("loss", "val_loss", "accuracy", "val_accuracy")


@dataclass(frozen=True)
class _Run:
    epochs: list[Any]
    loss: list[float | None]
    val_loss: list[float | None]
    accuracy: list[float | None]
    val_accuracy: list[float | None]

    def known(self, key: str) -> list[tuple[int, float]]:
        """(epoch, value) wherever a number was measured."""
        return [(epoch, value) for epoch, value in self.measured(key) if math.isfinite(value)]

    def measured(self, key: str) -> list[tuple[int, float]]:
        """(epoch, value) wherever there is a value, be it NaN or infinite."""
        values: list[float | None] = getattr(self, key)
        return [(int(e), float(v)) for e, v in zip(self.epochs, values) if v is not None]

    def last(self, key: str) -> float | None:
        known = self.known(key)
        return known[-1][1] if known else None


def _diverged(run: _Run) -> str:
    remedy = "Try a lower --lr, some --warmup, or --clip 1."
    for key, name in (("loss", "train"), ("val_loss", "validation")):
        since = None
        for epoch, value in run.measured(key):
            since = None if math.isfinite(value) else (since or epoch)
        # A val_loss of NaN throughout was never measured.
        if since is not None and (key == "loss" or run.known(key)):
            return f"The {name} loss broke in epoch {since}: training diverged. {remedy}"
    losses = run.known("loss")
    first, last = losses[0][1], losses[-1][1]
    lowest, best = min((value, epoch) for epoch, value in losses)
    # Where nearly every picture is right, a loss that doubles is the noise of a tiny number.
    accurate = (run.last("accuracy") or 0) > 0.9
    if last > first and last > 2 * lowest and not accurate:
        return (
            f"The train loss has grown from {lowest:.3g} in epoch {best} to {last:.3g}, above its "
            f"start: training diverged. {remedy}"
        )
    return ""


def _one_epoch(run: _Run) -> str:
    if len(run.known("loss")) > 1:
        return ""
    return f"{_standing(run)}. One epoch shows no trend yet: train for more (--epochs)."


def _not_validated(run: _Run) -> str:
    if run.known("val_loss") or run.known("val_accuracy"):
        return ""
    trend = " The train loss was still falling." if _falling(run.known("loss")) else ""
    return (
        f"{_standing(run)}; nothing was held out for validation, so overfitting cannot be seen."
        f"{trend} Hold some pictures out (--val 0.1)."
    )


def _rising(run: _Run) -> str:
    losses = run.known("val_loss")
    if not losses:
        return ""
    lowest, best = min((value, epoch) for epoch, value in losses)
    since = [value for epoch, value in losses if epoch > best]
    train = [value for epoch, value in run.known("loss") if epoch >= best]
    risen = len(since) >= 2 and fmean(since[-3:]) > (1 + _RISE) * lowest
    if not risen or train[-1] >= train[0]:
        return ""
    return (
        f"{_standing(run)}; the validation loss has risen since epoch {best}: the network "
        f"overfits. {_AGAINST_OVERFITTING}, or stop near epoch {best}."
    )


def _improving(run: _Run) -> str:
    validation = run.known("val_loss") or [(e, -v) for e, v in run.known("val_accuracy")]
    if not (_falling(run.known("loss")) and _falling(validation)):
        return ""
    return (
        f"{_standing(run)}. Train and validation were both still improving when training stopped: "
        f"train longer (--epochs {2 * len(run.epochs)})."
    )


def _gaping(run: _Run) -> str:
    gap = _gap(run)
    if gap is None or gap <= _GAP:
        return ""
    return f"{_standing(run)}: the network overfits. {_AGAINST_OVERFITTING}."


def _underfitting(run: _Run) -> str:
    accuracy, losses = run.last("accuracy"), run.known("loss")
    hardly_fallen = losses[-1][1] > 0.7 * losses[0][1] > 0
    if not (hardly_fallen if accuracy is None else accuracy < _LOW):
        return ""
    return (
        f"{_standing(run)}: the network underfits, it does not even fit the pictures it learns "
        "from. Try a larger or pretrained network, a higher --lr, or less augmentation, dropout "
        "and decay."
    )


_AGAINST_OVERFITTING = (
    "Try more pictures, more augmentation (--augment), more dropout or --weight-decay, a smaller "
    "or pretrained network"
)


def _falling(values: list[tuple[int, float]]) -> bool:
    """Whether the last tenth lies more than _FALL below the tenth before, and holds the lowest."""
    numbers = [value for _, value in values]
    width = max(1, len(numbers) // 10)
    if len(numbers) < 2 * width:
        return False
    last, before = numbers[-width:], numbers[-2 * width : -width]
    fallen = fmean(before) - fmean(last) > _FALL * abs(fmean(before))
    return fallen and min(last) == min(numbers)


def _gap(run: _Run) -> float | None:
    train, validation = run.last("accuracy"), run.last("val_accuracy")
    if train is None or validation is None:
        return None
    # Of the figures as they are shown, so that the reader's own subtraction agrees.
    return round(train, 3) - round(validation, 3)


def _standing(run: _Run) -> str:
    """The last accuracies and their gap, or the last losses where there are none."""
    gap = _gap(run)
    if gap is not None:
        ahead = "a gap of" if gap >= 0 else "validation ahead by"
        return (
            f"Train accuracy {run.last('accuracy'):.1%}, "
            f"validation {run.last('val_accuracy'):.1%}: "
            f"{ahead} {abs(100 * gap):.1f} points"
        ).replace("%", " %")
    if (accuracy := run.last("accuracy")) is not None:
        return f"Train accuracy {accuracy:.1%}".replace("%", " %")
    validation = run.last("val_loss")
    held = "" if validation is None else f", validation {validation:.3g}"
    return f"Train loss {run.last('loss'):.3g}{held}"
