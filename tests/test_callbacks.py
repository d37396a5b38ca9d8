"""Callbacks act on hand-written sequences of figures as Keras documents them."""

from pathlib import Path

import pytest
import torch

from sigak.callbacks import (
    Callback,
    EarlyStopping,
    ModelCheckpoint,
    ReduceLROnPlateau,
    TensorBoard,
    asked_for,
    restore,
    states,
)
from sigak.recipe import Options
from sigak.structures import SigakError


class Recorder:
    """A run that writes down what callbacks ask of it; its weights are the epoch's number."""

    def __init__(self, folder=Path("run"), lr=1.0):
        self.folder, self.lr_scale, self.stop, self.base = folder, 1.0, False, lr
        self.epoch, self.saved, self.put_back = 0, [], None

    def weights(self):
        return {"w": torch.tensor(float(self.epoch))}

    def set_weights(self, weights):
        self.put_back = int(weights["w"])

    def save(self, path, logs, *, weights_only=False):
        self.saved.append((path, weights_only))

    def current_lr(self):
        return self.base * self.lr_scale


def play(callback, values, *, monitor="val_loss", run=None):
    """Feed one figure an epoch; the run, and the learning rate after each epoch."""
    run = run or Recorder()
    rates = []
    callback.on_train_begin(run)
    for value in values:
        run.epoch += 1
        callback.on_epoch_end(run, run.epoch, {monitor: value})
        rates.append(round(run.current_lr(), 9))
        if run.stop:
            break
    callback.on_train_end(run)
    return run, rates


# ------------------------------------------------------------------ EarlyStopping


@pytest.mark.parametrize(
    ("patience", "values", "stopped_after", "best"),
    [
        (1, [3, 2, 2.5, 1], 3, 2),
        (2, [3, 2, 2.5, 2.4, 1], 4, 2),
        (2, [3, 2, 2.5, 1.9, 2, 2, 0], 6, 4),
        (3, [1, 2, 3, 4, 5], 4, 1),
        (0, [1, 2, 3], 2, 1),  # as 1: an epoch must pass before there is nothing better
        (5, [3, 2, 2.5], 3, 2),  # never stopped, and still the best weights come back
    ],
)
def test_early_stopping_acts_when_the_wait_reaches_the_patience(
    patience, values, stopped_after, best
):
    run, _ = play(EarlyStopping(patience=patience), values)
    assert run.epoch == stopped_after
    assert run.stop == (stopped_after < len(values))
    assert run.put_back == best


def test_early_stopping_takes_equal_for_no_improvement():
    run, _ = play(EarlyStopping(patience=2), [1, 1, 1, 1])
    assert (run.epoch, run.put_back) == (3, 1)


def test_min_delta_is_absolute_and_has_no_sign():
    for delta in (0.1, -0.1):
        run, _ = play(EarlyStopping(patience=2, min_delta=delta), [1.0, 0.95, 0.91, 0.5])
        assert (run.epoch, run.put_back) == (3, 1)
    run, _ = play(EarlyStopping(patience=2, min_delta=0.1), [1.0, 0.89, 0.85, 0.7])
    assert (run.epoch, run.put_back) == (4, 4)  # 0.85 is no gain on 0.89, 0.7 is


def test_early_stopping_may_leave_the_last_weights():
    run, _ = play(EarlyStopping(patience=1, restore_best_weights=False), [1, 2])
    assert run.stop
    assert run.put_back is None


def test_early_stopping_waits_for_its_first_epoch():
    run, _ = play(EarlyStopping(patience=1, start_from_epoch=3), [1, 2, 3, 4, 5, 6])
    assert (run.epoch, run.put_back) == (5, 4)


def test_nan_is_never_an_improvement():
    run, _ = play(EarlyStopping(patience=2), [float("nan"), 1.0, float("nan"), float("nan")])
    assert (run.epoch, run.put_back) == (4, 2)


# ------------------------------------------------------------------ ReduceLROnPlateau


def test_the_rate_falls_when_the_wait_reaches_the_patience():
    _, rates = play(ReduceLROnPlateau(patience=2, factor=0.5), [1, 1, 1, 1, 1, 0.5, 0.5])
    assert rates == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.25]


def test_cooldown_does_not_count():
    _, rates = play(ReduceLROnPlateau(patience=1, factor=0.5, cooldown=2), [1] * 7)
    # A cut after the second epoch; then one epoch of pause before waiting begins again.
    assert rates == [1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125]


def test_the_rate_never_passes_its_least():
    _, rates = play(ReduceLROnPlateau(patience=1, factor=0.1, min_lr=0.03), [1] * 5)
    assert rates == [1, 0.1, 0.03, 0.03, 0.03]


def test_plateau_has_a_least_change():
    _, rates = play(ReduceLROnPlateau(patience=1, factor=0.5), [1, 1 - 0.5e-4, 0.9])
    assert rates == [1, 0.5, 0.5]


def test_the_factor_must_reduce():
    for factor in (0, 1, 2):
        with pytest.raises(SigakError, match="factor"):
            ReduceLROnPlateau(factor=factor)


# ------------------------------------------------------------------ ModelCheckpoint


def test_checkpoints_are_written_when_the_figure_improves():
    run, _ = play(ModelCheckpoint(), [3, 2, 2.5, 1])
    assert [path.as_posix() for path, _ in run.saved] == ["run/best.safetensors"] * 3


def test_checkpoint_paths_hold_the_epoch_and_figures():
    keeper = ModelCheckpoint(
        "{epoch:02d}-{val_loss:.2f}.safetensors", save_best_only=False, save_weights_only=True
    )
    run, _ = play(keeper, [3, 2, 2.5])
    names = ["01-3.00", "02-2.00", "03-2.50"]
    assert run.saved == [(Path("run") / f"{name}.safetensors", True) for name in names]
    assert keeper.best_epoch == 2


def test_an_absolute_path_stays(tmp_path):
    run, _ = play(ModelCheckpoint(tmp_path / "x.safetensors"), [1])
    assert run.saved[0][0] == tmp_path / "x.safetensors"


# ------------------------------------------------------------------ the figure they watch


@pytest.mark.parametrize(
    ("monitor", "mode", "best"),
    [
        ("val_loss", "auto", 2),
        ("loss", "auto", 2),
        ("val_accuracy", "auto", 1),
        ("val_top5", "auto", 1),
        ("val_accuracy", "min", 2),
        ("val_loss", "max", 1),
        ("seconds", "min", 2),
    ],
)
def test_modes(monitor, mode, best):
    run, _ = play(EarlyStopping(monitor, mode=mode), [3, 1, 2], monitor=monitor)
    assert run.put_back == best


def test_a_figure_that_is_not_measured_is_named():
    with pytest.raises(SigakError, match="'val_loss' is not measured here; measured are loss"):
        play(EarlyStopping(), [1], monitor="loss")
    with pytest.raises(SigakError, match="cannot tell whether 'seconds' should rise or fall"):
        EarlyStopping("seconds")
    with pytest.raises(SigakError, match="mode must be auto, min or max, received 'up'"):
        EarlyStopping(mode="up")


# ------------------------------------------------------------------ surviving a restart


@pytest.mark.parametrize("cut", range(1, 6))
@pytest.mark.parametrize(
    "make",
    [
        lambda: EarlyStopping(patience=2),
        lambda: ReduceLROnPlateau(patience=2, factor=0.5, cooldown=1),
        ModelCheckpoint,
    ],
)
def test_a_restored_callback_goes_on_as_if_nothing_had_happened(make, cut):
    values = [3, 2, 2.5, 2.2, 1, 1.5, 1.6]
    whole, rates = play(make(), values)
    first, after = [make()], [make()]
    run, before = play(first[0], values[:cut])
    run.put_back = None
    restore(after, states(first))
    if not run.stop:
        _, later = play(after[0], values[cut:], run=run)
        assert before + later == rates
    assert (run.epoch, run.stop, run.saved) == (whole.epoch, whole.stop, whole.saved)


def test_other_callbacks_than_before_are_refused():
    with pytest.raises(SigakError, match="began with the callbacks EarlyStopping and cannot"):
        restore([Callback()], states([EarlyStopping()]))


def test_options_ask_for_callbacks():
    assert asked_for(Options(), "loss", log=True) == []
    options = Options(early_stop=3, min_delta=0.1, reduce_lr=2, reduce_factor=0.3, tensorboard=True)
    plateau, stop, board = asked_for(options, "val_accuracy", log=True)
    assert (plateau.patience, plateau.factor, plateau.monitor) == (2, 0.3, "val_accuracy")
    assert (stop.patience, stop.min_delta, stop.sign) == (3, 0.1, 1.0)
    assert isinstance(board, TensorBoard)
    assert len(asked_for(options, "loss", log=False)) == 2


def test_tensorboard_writes_events(tmp_path):
    pytest.importorskip("tensorboard")
    play(TensorBoard(), [1, 2], run=Recorder(tmp_path))
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"val_loss" in events.read_bytes()
