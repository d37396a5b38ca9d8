"""The command line: thin. Flags are generated from dataclasses; a verb's code is imported when it
is called.

Exit 0: done. 2: the user's mistake, in one sentence. 1: a failure. With --json standard output
holds one JSON document (for videos one a line) and nothing else; everything for people goes to
standard error.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from typing import Any, NoReturn

from sigak.asking import Prompts
from sigak.errors import Failure, SigakError
from sigak.recipe import Options, Recipe

__all__ = [
    "Augment",
    "Convert",
    "Data",
    "Evaluate",
    "Explain",
    "Export",
    "FindLr",
    "Image",
    "Import",
    "Lab",
    "Models",
    "Parser",
    "Predict",
    "Sweep",
    "Train",
    "main",
]


def _arg(help: str, *, many: bool = False) -> Any:
    return field(metadata={"help": help, "positional": True, "many": many})


def _flag(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(kw_only=True)
class Train:
    """Train a network on data: a run folder with the best weights, figures and a report."""

    model: str = _arg("a name of `sigak models`")
    data: str = _arg(
        "a folder of class folders, or digits, mnist, fashion-mnist, cifar10, cifar100, ..."
    )


@dataclass(kw_only=True)
class Lab:
    """Train several networks on the same data and compare them; the same command again goes on
    where it stopped.
    """

    data: str = _arg("as for train")
    models: list[str] = field(
        default_factory=list,
        metadata={
            "help": "names of `sigak models`; none: the ten networks of the lab, vgg1 to "
            "vgg3-dropout-l2-bn",
            "positional": True,
            "many": True,
        },
    )


@dataclass(kw_only=True)
class FindLr:
    """Find the learning rate of a network on data by a range test, or with --batch-size the batch;
    nothing is kept.
    """

    model: str = _arg("a name of `sigak models`")
    data: str = _arg("as for train")
    low: float = _flag(1e-6, "the lowest learning rate tried")
    high: float = _flag(10.0, "the highest")
    steps: int = _flag(100, "steps from one to the other")
    draw: str = _flag("", "write a diagram of the losses to this file")
    batch_size: bool = _flag(False, "double the batch instead, until it is no longer faster")
    target: str = _flag("", "for networks that adapt: pictures of a second domain, as for train")
    pretrained: str = _flag("", "start from weights: a file, a tag of `sigak models`, or `default`")
    device: str = _flag("auto", "auto, cpu, cuda, cuda:1, mps")
    download: bool = _flag(False, "allow downloading the data or weights that are missing")


@dataclass(kw_only=True)
class Sweep:
    """Search fields of the recipe for the best figure on validation pictures; the same command
    again goes on where it stopped.
    """

    model: str = _arg("a name of `sigak models`")
    data: str = _arg("as for train")
    over: list[str] = field(
        metadata={
            "help": "a field and its values, lr=1e-4..1e-2 or batch=32,64; may be repeated",
            "metavar": "FIELD=VALUES",
        }
    )
    trials: int = _flag(20, "trials there shall be in all")
    seconds: float = _flag(0.0, "start no other trial after so many; 0 means no limit")


@dataclass(kw_only=True)
class Evaluate:
    """Measure a checkpoint on labelled pictures."""

    checkpoint: str = _arg("a checkpoint, a run folder, or a COCO result .json of any detector")
    data: str = _arg("as for train; with a result .json the COCO annotations")
    split: str = _flag(
        "", "train, val, test or all; empty: test, else what was held out in training, else all"
    )
    batch: int = _flag(64, "pictures at a time")
    device: str = _flag("auto", "auto, cpu, cuda, cuda:1, mps")
    engine: str = _flag(
        "",
        "torch, torch-fused, torch-bf16, onnx, openvino, openvino-bf16, or auto: the fastest that "
        "gives the same answers; empty: torch, or what an exported file is for",
    )
    download: bool = _flag(False, "allow downloading the data if it is missing")
    json: bool = _flag(False, "print JSON")


@dataclass(kw_only=True)
class Predict:
    """Answer for pictures, folders, videos, streams or a camera; or make pictures, where the
    checkpoint is one that does. With --json and a video every line of the output is one document.
    """

    checkpoint: str = _arg("a checkpoint, a run folder or an exported file")
    source: list[str] = field(
        default_factory=list,
        metadata={
            "help": "pictures, folders, patterns, a .txt file with one of them a line, videos, "
            "addresses of streams (rtsp://...), or a camera's number such as 0",
            "positional": True,
            "many": True,
        },
    )
    prepare: str = _flag(
        "", 'picture steps done first, such as "crop=100,400,600,900 mirror invert"'
    )
    batch: int = _flag(64, "pictures at a time")
    device: str = _flag("auto", "auto, cpu, cuda, cuda:1, mps")
    engine: str = _flag(
        "",
        "torch, torch-fused, torch-bf16, onnx, openvino, openvino-bf16, or auto: the fastest that "
        "gives the same answers; empty: torch, or what an exported file is for",
    )
    save: str = _flag(
        "", "a folder for the answers and the pictures with their answers drawn on them"
    )
    conf: float | None = _flag(None, "detectors: the least score of a box (default 0.25)")
    iou: float = _flag(
        0.0,
        "detectors: of two boxes of a class that overlap more, the better stays (default: the "
        "network's own)",
    )
    classes: str = _flag("", "detectors: only these, separated by commas, or a file of names")
    size: int = _flag(0, "detectors: longest side of the network's input; 0 means the checkpoint's")
    every: int = _flag(1, "of a video each so many-th frame")
    track: bool = _flag(False, "detectors: objects keep a number from frame to frame")
    tta: str = _flag(
        "",
        "segmentation: average over views, mirror and scales, such as mirror or mirror,0.75,1.25",
    )
    tile: int = _flag(
        0,
        "segmentation: cut the picture as it is into overlapping windows of this side, instead of "
        "fitting it to the network's input",
    )
    draw: bool = _flag(
        False, "draw the answers; where no --save says where to, into the folder predictions"
    )
    txt: bool = _flag(False, "as --draw, and labels/NAME.txt as YOLO writes them")
    coco: bool = _flag(False, "as --draw, and coco.json, a COCO result file")
    samples: int = _flag(0, "make so many pictures instead, with a checkpoint such as a dcgan's")
    seed: int = _flag(0, "seed of the pictures that --samples makes")
    json: bool = _flag(False, "print JSON")


@dataclass(kw_only=True)
class Explain:
    """Show on one sheet what a checkpoint's answer for a picture rests on."""

    checkpoint: str = _arg("a checkpoint or a run folder")
    source: str = _arg("one picture")
    out: str = _flag("", "the sheet to write; empty means NAME-explained.png in this folder")
    label: str = field(
        default="",
        metadata={"help": "the class to explain; empty: the answer", "flag": "--class"},
    )
    layer: str = _flag(
        "", "the layer Grad-CAM looks at; empty: the deepest at the last convolution's resolution"
    )
    device: str = _flag("auto", "auto, cpu, cuda, cuda:1, mps")
    json: bool = _flag(False, "print JSON")


@dataclass(kw_only=True)
class Export:
    """Write a checkpoint as a file for another engine, run it there, and compare the answers."""

    checkpoint: str = _arg("a checkpoint or a run folder")
    to: str = field(metadata={"help": "onnx or openvino"})
    out: str = _flag(
        "", "the file to write (.onnx; .xml with a .bin beside it); empty: beside the checkpoint"
    )
    precision: str = _flag(
        "float32", "float32, or float16: weights take half the bytes and lose digits"
    )
    size: int = _flag(0, "detectors: longest side of the input; 0 means the checkpoint's")
    data: str = _flag("", "compare on pictures of this data; empty: on drawn ones")
    download: bool = _flag(False, "allow downloading the data if it is missing")
    json: bool = _flag(False, "print JSON")


@dataclass(kw_only=True)
class Models:
    """List networks with their parameters, input, weights and licence; one network layer by layer;
    or several side by side.
    """

    pattern: list[str] = field(
        default_factory=list,
        metadata={"help": "parts of names, patterns, or a task", "positional": True, "many": True},
    )
    summary: bool = _flag(False, "layers, output shapes and parameters of the one network named")
    compare: bool = _flag(
        False,
        "size, depth, published accuracy and measured speed of the networks named; none: the "
        "classics of classification, which takes minutes",
    )
    batch: int = _flag(16, "pictures at a time, of --compare")
    seconds: float = _flag(2.0, "how long --compare times each network")
    no_speed: bool = _flag(False, "compare without measuring speed")
    device: str = _flag("auto", "auto, cpu, cuda, cuda:1, mps; of --compare")
    sort: str = _flag(
        "",
        "order of --compare, the best first: name, megabytes, parameters, depth, multiply_adds, "
        "top1, top5 or images_per_second",
    )
    out: list[str] = field(
        default_factory=list,
        metadata={
            "help": "a table (.csv, .json) or a chart (.png, .svg, .pdf) of --compare; may be "
            "repeated",
            "metavar": "FILE",
        },
    )
    json: bool = _flag(False, "print JSON")


@dataclass(kw_only=True)
class Data:
    """Look at data: classes, counts, splits, sizes, and what is wrong with it."""

    data: str = _arg("as for train")
    draw: str = _flag("", "write a picture of labelled samples to this file")
    check: bool = _flag(
        False,
        "look at every picture: leaks, near copies, doubtful labels, odd values and sizes; exit "
        "code 1 if anything was found",
    )
    val: float = _flag(0.1, "share held out for validation where the data has no val split")
    seed: int = _flag(0, "seed of that split")
    download: bool = _flag(False, "allow downloading the data if it is missing")
    strict: bool = _flag(False, "fail if a picture cannot be read")
    json: bool = _flag(False, "print JSON")


@dataclass(kw_only=True)
class Convert:
    """Write pictures with boxes in another format: YOLO, COCO or Pascal VOC."""

    source: str = _arg("a data.yaml, a COCO .json or a Pascal VOC folder")
    destination: str = _arg("a new or empty folder")
    to: str = field(metadata={"help": "yolo, coco or voc"})
    link: bool = _flag(False, "link the pictures instead of copying them")
    no_images: bool = _flag(False, "write the annotations alone")
    single_class: bool = _flag(False, "take all objects as one class, `object`")
    strict: bool = _flag(False, "refuse labels with mistakes instead of mending them")
    json: bool = _flag(False, "print JSON")


@dataclass(kw_only=True)
class Image:
    """Picture operations in a chain; without --out the picture is described."""

    source: str = field(
        default="", metadata={"help": "a picture, a folder or a pattern", "positional": True}
    )
    steps: list[str] = field(
        default_factory=list,
        metadata={
            "help": "steps in order; `sigak image --list-steps` lists them",
            "positional": True,
            "many": True,
        },
    )
    out: str = _flag("", "the file to write, or a folder for several pictures")
    json: bool = _flag(False, "print JSON")


@dataclass(kw_only=True)
class Import:
    """Turn weights made elsewhere into a checkpoint, without executing anything in them."""

    weights: str = _arg("a .safetensors, .pt, .pth, .th, .onnx, .h5, .keras or .weights file")
    model: str = field(
        metadata={"help": "the network they belong to, or a darknet .cfg file", "flag": "--as"}
    )
    out: str = field(metadata={"help": "the checkpoint to write"})
    classes: str = _flag("", "class names in label order: a,b,c or a file with one a line")
    size: int = _flag(0, "height and width the network sees; 0 means the network's own")


@dataclass(kw_only=True)
class Augment:
    """A grid of what training will see."""

    source: str = _arg("a picture, a folder or a pattern")
    out: str = field(metadata={"help": "the picture to write"})
    augment: str = _flag("medium", "as for train")
    size: int = _flag(224, "height and width the network sees")
    rows: int = _flag(4, "pictures to show")
    seed: int = _flag(0, "seed of the randomness")


VERBS: dict[str, tuple[type, ...]] = {
    "train": (Train, Recipe, Options),
    "lab": (Lab, Recipe, Options),
    "find-lr": (FindLr, Recipe),
    "sweep": (Sweep, Recipe, Options),
    "evaluate": (Evaluate,),
    "predict": (Predict, Prompts),
    "explain": (Explain,),
    "export": (Export,),
    "models": (Models,),
    "data": (Data,),
    "convert": (Convert,),
    "image": (Image,),
    "import": (Import,),
    "augment": (Augment,),
}


class Parser(argparse.ArgumentParser):
    """argparse that answers a mistake in one sentence, with the nearest flag."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse, but a verb answers for its own flags, so that it can name the nearest."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error("unrecognized arguments: " + " ".join(rest))
        return found, rest

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ").split()
        if message.startswith("unrecognized") and unknown:
            flags = [f for a in self._actions for f in a.option_strings]
            near = get_close_matches(unknown[0].split("=")[0], flags, 2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"see `{self.prog} --help`"
            message = f"{self.prog} does not know {unknown[0]}; {hint}"
        elif message.startswith("argument VERB: invalid choice"):
            given = message.split("'")[1]
            near = get_close_matches(given, VERBS, 2)
            hint = f"did you mean {' or '.join(near)}?" if near else f"expected {', '.join(VERBS)}"
            message = f"sigak has no verb {given!r}; {hint}"
        else:
            message = f"{message}; see `{self.prog} --help`"
        self.exit(2, f"sigak: {message}\n")


_TYPES = {"int": int, "float": float, "str": str}


def _add(parser: Parser, kind: type, *, sparse: bool) -> None:
    """Generate arguments from a dataclass. sparse: only what the user says is passed on."""
    for f in fields(kind):
        meta = dict(f.metadata)
        if meta.get("positional"):
            required = f.default is MISSING and f.default_factory is MISSING
            nargs = ("+" if required else "*") if meta.get("many") else (None if required else "?")
            default = None if required else [] if meta.get("many") else f.default
            parser.add_argument(f.name, nargs=nargs, default=default, help=meta["help"])  # type: ignore[arg-type]
            continue
        name = meta.get("flag", "--" + f.name.replace("_", "-"))
        many = f.default_factory is not MISSING
        required = f.default is MISSING and not many
        default = [] if many else f.default
        shown = "" if required or default in ("", False, [], None) else f" (default {default})"
        options: dict[str, Any] = {
            "dest": f.name,
            "help": (meta["help"] + shown).replace("%", "%%"),
        }
        if f.type == "bool":
            options["action"] = "store_true"
        elif f.type == "list[str]":
            options |= {"action": "append", "required": required, "metavar": meta["metavar"]}
        else:
            wanted = str(f.type).removesuffix(" | None")
            options |= {
                "type": _TYPES[wanted],
                "required": required,
                "metavar": wanted.upper(),
            }
        if name == "--pretrained":
            options |= {"nargs": "?", "const": "default"}
        options["default"] = argparse.SUPPRESS if sparse else (None if required else default)
        parser.add_argument(name, **options)


def _parser() -> Parser:
    top = Parser(
        prog="sigak",
        description="One toolkit for visual intelligence.",
        epilog="`sigak VERB --help` explains a verb. Nothing is downloaded unless you say "
        "--download.",
        allow_abbrev=False,
    )
    top.add_argument("--version", action="store_true", help="print the version")
    verbs = top.add_subparsers(dest="verb", metavar="VERB", parser_class=Parser)
    for name, kinds in VERBS.items():
        doc = (kinds[0].__doc__ or "").strip()
        parser = verbs.add_parser(name, help=doc, description=doc, allow_abbrev=False)
        for kind in kinds:
            _add(parser, kind, sparse=Recipe in kinds or kind is Prompts)
        if Recipe in kinds:
            parser.add_argument("--json", action="store_true", help="print JSON")
        if name == "image":
            parser.add_argument("--list-steps", action="store_true", help="list the steps")
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = _parser()
    said = parser.parse_args(_joined(sys.argv[1:] if arguments is None else arguments))
    if said.version:
        from importlib.metadata import version

        print(version("sigak"))
        return 0
    if said.verb is None:
        parser.print_help()
        return 0
    from sigak import commands

    values = vars(said)
    values.pop("version")
    run = getattr(commands, f"run_{values.pop('verb').replace('-', '_')}")
    return _guarded(run, values)


def _joined(words: Sequence[str]) -> list[str]:
    """`--box -5,0,9,9` as `--box=-5,0,9,9`: argparse takes such a value for a flag."""
    joined: list[str] = []
    for word in words:
        if re.match(r"-[\d.]", word) and joined and re.fullmatch(r"--[a-z-]+", joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _guarded(run: Callable[[dict[str, Any]], None], values: dict[str, Any]) -> int:
    """Run a verb; mistakes become one sentence and exit code 2, failures exit code 1."""
    try:
        run(values)
        return 0
    except BrokenPipeError:  # the reader of our output closed it, as `head` does
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        print("sigak: interrupted", file=sys.stderr)
        return 1
    except SigakError as error:
        print(f"sigak: {error}", file=sys.stderr)
        return 2
    except (Failure, OSError) as error:
        print(f"sigak: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
