"""The written form of an augmentation, "flip=h,rotate=15", and what every name in it means."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches

from sigak.ops.warp import FILLS
from sigak.structures import SigakError

__all__ = ["CLOSED", "GRAY", "HELP", "PRESETS", "Settings", "parse", "write"]

GRAY = "gray"  # the fill of detection, where a mirror image would show objects without boxes

# Words that stand for a whole specification, and may begin one: "medium,rotate=0,mixup=0.2".
PRESETS = {
    "none": "",
    "light": "flip=h,zoom=0.05,shift=0.05",
    "medium": "flip=h,zoom=0.1,rotate=10,shift=0.1,brightness=0.1,contrast=0.1",
    "strong": (
        "flip=h,zoom=0.2,shear=5,rotate=15,shift=0.1,brightness=0.3,contrast=0.3,saturation=0.3,"
        "hue=0.03,noise=0.02,mixup=0.2,cutmix=1"
    ),
}


@dataclass(frozen=True)
class _Rule:
    """One name: what it means, the range of its one value (or two), or the words it takes."""

    help: str
    low: float = 0.0
    high: float = 1.0
    pair: bool = False
    whole: bool = False
    words: tuple[str, ...] = ()


# In the order in which things are done, which is also the order of the standard written form.
_RULES = {
    "mosaic": _Rule("four pictures of the batch on one canvas, probability: mosaic=1"),
    "crop": _Rule("pad every side by N pixels, cut a random window: crop=4", 0, 4096, whole=True),
    "rrc": _Rule("random resized crop, the smallest share of the area: rrc=0.08"),
    "flip": _Rule(
        "mirror with chance 1/2: flip=h, flip=v or flip=both; flip=alternate every other epoch",
        words=("h", "v", "both", "alternate"),
    ),
    "zoom": _Rule(
        "scale by 1 ± share, above 1 magnifies: zoom=0.1, or height/width zoom=0.1/0.2",
        high=0.9,
        pair=True,
    ),
    "shear": _Rule("slant by up to ± degrees: shear=5", high=80),
    "rotate": _Rule("turn by up to ± degrees: rotate=15", high=180),
    "perspective": _Rule("tilt by up to a share of the scale: perspective=0.2", high=0.9),
    "shift": _Rule(
        "move by up to ± a share of the side: shift=0.1, or width/height shift=0.1/0.2", pair=True
    ),
    "brightness": _Rule("multiply by 1 ± share: brightness=0.2"),
    "contrast": _Rule("multiply the distance from mid-gray by 1 ± share: contrast=0.2"),
    "saturation": _Rule("multiply the distance from gray by 1 ± share: saturation=0.2"),
    "hue": _Rule("turn the colours by up to ± a share of the circle: hue=0.05", high=0.5),
    "noise": _Rule("normal noise, standard deviation as a share of 255: noise=0.05"),
    "cutout": _Rule("blank a random square of N pixels: cutout=8", 0, 4096, whole=True),
    "mixup": _Rule("blend with a partner of the batch, alpha of the Beta: mixup=0.2", high=100),
    "cutmix": _Rule("paste a part of a partner, alpha of the Beta: cutmix=1", high=100),
    "copypaste": _Rule("paste outlined objects of a partner, probability: copypaste=0.3"),
    "blend": _Rule("show a partner and its objects through, probability: blend=0.15"),
    "close": _Rule(
        "no mosaic, copypaste and blend in the last N epochs: close=10", 0, 100_000, whole=True
    ),
    "fill": _Rule(
        "what lies outside: fill=reflect, nearest, constant (black) or gray (as beside a "
        "letterboxed picture)",
        words=(*FILLS, GRAY),
    ),
}

# What other tools call what is here, for those who come from there.
_ELSEWHERE = {"scale": "zoom", "translate": "shift", "degrees": "rotate", "fliplr": "flip"}
CLOSED = ("mosaic", "copypaste", "blend")  # what close=N leaves out of the last epochs

HELP = {name: rule.help for name, rule in _RULES.items()}

Value = str | tuple[float, ...]


@dataclass(frozen=True)
class Settings:
    """The chosen names with their values, in the order of `HELP`; a value is one word or one or two
    numbers.
    """

    items: tuple[tuple[str, Value], ...] = ()

    def __contains__(self, name: str) -> bool:
        return any(name == known for known, _ in self.items)

    def __bool__(self) -> bool:
        return any(name not in ("close", "fill") for name, _ in self.items)

    def word(self, name: str) -> str:
        """The word chosen for `name`; empty where it is not chosen."""
        value = dict(self.items).get(name, "")
        return value if isinstance(value, str) else ""

    def numbers(self, name: str) -> tuple[float, ...]:
        """The one or two numbers chosen for `name`; (0,) where it is not chosen."""
        value = dict(self.items).get(name, (0.0,))
        return value if isinstance(value, tuple) else (0.0,)

    def number(self, name: str) -> float:
        """The (first) number chosen for `name`; 0 where it is not chosen."""
        return self.numbers(name)[0]

    def without(self, names: tuple[str, ...]) -> Settings:
        """The same settings but for `names`."""
        return Settings(tuple(item for item in self.items if item[0] not in names))

    @property
    def fill(self) -> str:
        """What lies outside a picture: reflect, nearest, constant or gray."""
        return self.word("fill") or "reflect"


def parse(spec: str) -> Settings:
    """Settings from text; a later word overrides an earlier one, and a value of 0 takes a name out
    again.

    Raises SigakError where a name is not known (naming the nearest) or a value is not of its kind
    or out of its range.
    """
    chosen: dict[str, Value] = {}
    for word in filter(None, (part.strip() for part in spec.split(","))):
        name, equals, text = (part.strip() for part in word.partition("="))
        if not equals and name in PRESETS:
            chosen |= dict(parse(PRESETS[name]).items)
        elif name not in _RULES:
            near = get_close_matches(name, [*_RULES, *PRESETS], 3) or [*PRESETS, *_RULES]
            near = [_ELSEWHERE[name]] if name in _ELSEWHERE else near
            raise SigakError(f"no augmentation is called {name!r}; did you mean {', '.join(near)}?")
        elif not text:
            raise SigakError(f"{name} needs a value after '='. {name}: {_RULES[name].help}")
        else:
            chosen[name] = _value(name, text, _RULES[name])
    # Zeros and the fill that is taken anyway say nothing, so they are not kept.
    silent = ("reflect", (0.0,), (0.0, 0.0))
    kept = {name: value for name, value in chosen.items() if value not in silent}
    if "mosaic" in kept:
        kept.setdefault("fill", GRAY)
    return Settings(tuple((name, kept[name]) for name in _RULES if name in kept))


def _value(name: str, text: str, rule: _Rule) -> Value:
    if rule.words:
        if text not in rule.words:
            raise SigakError(f"{name} must be {' or '.join(rule.words)}, received {text!r}")
        return text
    parts = text.split("/")
    if len(parts) > (2 if rule.pair else 1):
        count = "one number or two" if rule.pair else "one number"
        raise SigakError(f"{name} takes {count}, received {text!r}. {name}: {rule.help}")
    return tuple(_number(name, part, rule) for part in parts)


def _number(name: str, text: str, rule: _Rule) -> float:
    kind = "a whole number" if rule.whole else "a number"
    wanted = f"{name} must be {kind} from {rule.low:g} to {rule.high:g}, received {text!r}"
    try:
        number = float(text)
    except ValueError:
        raise SigakError(wanted) from None
    if not rule.low <= number <= rule.high or (rule.whole and number != int(number)):
        raise SigakError(wanted)
    return number


def write(settings: Settings) -> str:
    """The standard written form, which `parse` reads back to equal settings; "none" where nothing
    is chosen.
    """
    words = [
        f"{name}={value if isinstance(value, str) else '/'.join(f'{v:g}' for v in value)}"
        for name, value in settings.items
    ]
    return ",".join(words) or "none"
