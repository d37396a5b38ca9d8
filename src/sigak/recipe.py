"""Recipe: everything that decides how a network is trained, as one flat, frozen value.

It stands on the lowest floor and imports nothing heavy, so that the command line can generate its
flags from it without loading torch. A network's entry may change the defaults (the lab networks
carry their published recipe); what the user says wins over both.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from sigak.errors import SigakError

__all__ = ["Options", "Recipe"]


def _(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Recipe:
    """How to train. Every field is a flag of `sigak train` of the same name."""

    epochs: int = _(20, "passes over the training pictures")
    batch: int = _(64, "pictures per step, over all processes and accumulated parts together")
    lr: float = _(1e-3, "learning rate of the head and of networks trained from nothing")
    backbone_lr: float = _(0.1, "learning rate of a pretrained backbone, as a share of --lr")
    optimizer: str = _(
        "adamw",
        "sgd, momentum, adagrad, rmsprop, adadelta, adam, adamw, or any class of torch.optim",
    )
    momentum: float = _(0.9, "momentum of sgd and rmsprop")
    weight_decay: float = _(
        0.0, "decay handed to the optimiser, on kernels only (not biases, not norms)"
    )
    l2: float = _(
        0.0, "L2 penalty l2 * sum(w^2) added to the loss, on every kernel but the last layer's"
    )
    schedule: str = _(
        "cosine",
        "constant, cosine, linear, poly, step, exponential or onecycle, stepped every batch",
    )
    warmup: float = _(0.0, "epochs of linear warm-up before the schedule")
    label_smoothing: float = _(0.0, "share of the label spread over all classes, 0 to 1")
    clip: float = _(0.0, "largest gradient norm; 0 means no clipping")
    accumulate: int = _(1, "parts a batch is cut into when it does not fit in memory")
    ema: float = _(
        0.0,
        "decay of the averaged weights that are evaluated and saved, such as 0.999; 0 means none",
    )
    augment: str = _(
        "none",
        "augmentation, such as flip=h,rotate=15,shift=0.1,zoom=0.1; none, light, medium or strong",
    )
    size: int = _(0, "height and width the network sees; 0 means the network's own")
    color: str = _(
        "",
        "gray, rgb or rgba; empty means the network's own, or the data's where the network takes "
        "any",
    )
    fit: str = _(
        "",
        "squash, letterbox, corner, rect or crop: how a picture meets the network's size; empty "
        "means the network's own",
    )
    standardize: str = _(
        "model", "model: the network's own mean and spread; data: measured on the training pictures"
    )
    loss: str = _(
        "",
        "segmentation: ce, dice, focal, lovasz, or a sum such as ce+dice; empty means ce",
    )
    label_mode: str = _("int", "int, categorical (one-hot) or binary (two classes, one output)")
    precision: str = _(
        "auto", "float32, bfloat16, or auto: bfloat16 where the processor has units for it"
    )
    seed: int = _(0, "seed of splits, weights, order and augmentation")
    val: float = _(
        0.1,
        "share of the training pictures held out for validation where the data has no val split",
    )
    freeze: str = _("", "backbone: train only the new head; empty: train everything")
    unfreeze_at: int = _(0, "epoch (from 1) at which a frozen backbone is let go; 0 means never")

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def of(cls, *layers: dict[str, Any]) -> Recipe:
        """A recipe from the defaults and any number of dicts of changes, later ones winning."""
        merged: dict[str, Any] = {}
        for layer in layers:
            merged |= layer
        known = [f.name for f in fields(cls)]
        for name in merged:
            if name not in known:
                near = get_close_matches(name, known, 3) or known
                raise SigakError(f"a recipe has no field {name!r}; did you mean {', '.join(near)}?")
        return cls(**merged)

    def asdict(self) -> dict[str, Any]:
        """The recipe as plain values, for recipe.json and the checkpoint."""
        return asdict(self)


# field -> (lowest, highest) allowed value; None means open on that side.
_RANGES: dict[str, tuple[float | None, float | None]] = {
    "epochs": (1, None),
    "batch": (1, None),
    "lr": (0, None),
    "backbone_lr": (0, None),
    "momentum": (0, 1),
    "weight_decay": (0, None),
    "l2": (0, None),
    "warmup": (0, None),
    "label_smoothing": (0, 1),
    "clip": (0, None),
    "accumulate": (1, None),
    "ema": (0, 1),
    "size": (0, None),
    "val": (0, 0.9),
    "unfreeze_at": (0, None),
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "color": ("", "gray", "rgb", "rgba"),
    "fit": ("", "squash", "letterbox", "corner", "rect", "crop"),
    "standardize": ("model", "data"),
    "label_mode": ("int", "categorical", "binary"),
    "precision": ("auto", "float32", "bfloat16"),
    "freeze": ("", "backbone"),
    "schedule": ("constant", "cosine", "linear", "poly", "step", "exponential", "onecycle"),
}


def _check(recipe: Recipe) -> None:
    for name, (low, high) in _RANGES.items():
        value = getattr(recipe, name)
        # Written so that NaN, which compares false with everything, is refused.
        if not ((low is None or value >= low) and (high is None or value <= high)):
            bound = f"at least {low}" if high is None else f"between {low} and {high}"
            raise SigakError(f"--{name.replace('_', '-')} must be {bound}, received {value}")
    for name, choices in _CHOICES.items():
        value = getattr(recipe, name)
        if value not in choices:
            near = get_close_matches(value, choices, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            shown = ", ".join(c for c in choices if c)
            raise SigakError(
                f"--{name.replace('_', '-')} must be one of {shown}, received {value!r}{hint}"
            )


@dataclass(frozen=True)
class Options:
    """How a run is carried out: nothing here changes what is learnt, apart from the callbacks, the
    weights to start from and the pictures of a second domain.
    """

    out: str = _("", "the run's folder; empty means runs/MODEL-DATA, numbered if taken")
    resume: str = _("", "continue the run in this folder where it was cut off")
    device: str = _("auto", "auto, cpu, cuda, cuda:1, mps")
    download: bool = _(False, "allow downloading the data or published weights that are missing")
    pretrained: str = _("", "start from weights: a file, a tag of `sigak models`, or `default`")
    target: str = _(
        "",
        "for networks that adapt: pictures of a second domain, a folder or a data set, whose truth "
        "is not learnt from",
    )
    single_class: bool = _(False, "boxes and masks: take all objects as one class, `object`")
    strict: bool = _(False, "refuse the data if a picture cannot be read, instead of skipping it")
    monitor: str = _(
        "", "the figure that callbacks watch; empty means val_loss, or loss without validation"
    )
    early_stop: int = _(
        0, "stop after this many epochs without improvement and restore the best; 0 means never"
    )
    min_delta: float = _(
        0.0, "the least change of --monitor that counts as improvement for --early-stop"
    )
    reduce_lr: int = _(
        0, "cut the learning rate after this many epochs without improvement; 0 means never"
    )
    reduce_factor: float = _(0.1, "what --reduce-lr multiplies the learning rate by")
    min_lr: float = _(0.0, "the learning rate --reduce-lr never goes below")
    save_every: float = _(60.0, "seconds between resume states within an epoch")
    tensorboard: bool = _(False, "also write the figures for TensorBoard (needs sigak[log])")
    threads: int = _(0, "threads that decode pictures; 0 means one a core, at most 8")
    quiet: bool = _(False, "no progress bar")

    def __post_init__(self) -> None:
        for name in ("early_stop", "reduce_lr", "min_delta", "min_lr", "save_every", "threads"):
            if not getattr(self, name) >= 0:
                flag = "--" + name.replace("_", "-")
                raise SigakError(f"{flag} must be at least 0, received {getattr(self, name)}")
