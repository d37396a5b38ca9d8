"""The demonstration: handwritten digits learnt, measured and read, without a network connection.

`make demo` or `python -m sigak.demo`. It writes runs/demo (numbered if taken): the checkpoint, the
report, twenty digits as pictures a person can see, and a sheet of the answers.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sigak import data, draw
from sigak.data import Split
from sigak.errors import Failure, SigakError
from sigak.evaluation import evaluate
from sigak.io import image, steps
from sigak.prediction import predict
from sigak.training import train

__all__ = ["main"]

MODEL = "lenet5"
# The augmentation is what a hand changes too: digits are turned a little and never mirrored.
RECIPE: dict[str, Any] = {
    "epochs": 30,
    "batch": 32,
    "lr": 3e-3,
    "augment": "rotate=10,shift=0.08,zoom=0.1,fill=nearest",
    "precision": "float32",
}
_PER_CLASS = 2  # test pictures written out for each digit
_SIDE = 224  # their height and width; the digits themselves have 8 x 8 pixels


def main() -> int:
    """Run the demonstration; returns the exit code."""
    # The network is so small that sharing its work among threads costs more than it gives.
    torch.set_num_threads(1)
    try:
        _demonstrate(_free_folder(Path("runs") / "demo"))
    except (Failure, SigakError, OSError) as error:
        print(f"sigak: {error}", file=sys.stderr)
        return 1
    return 0


def _demonstrate(folder: Path) -> None:
    digits = data.load("digits")
    test = digits.splits["test"]
    print(
        f"{MODEL} learns {len(digits.splits['train']):,} handwritten digits in {folder}", flush=True
    )
    run = train(MODEL, digits, out=str(folder), device="cpu", **RECIPE)
    figures = evaluate(run.checkpoint, digits, split="test", device="cpu")
    pictures = _write_pictures(test, folder / "pictures")
    answers = predict(run.checkpoint, pictures, device="cpu")
    captions = [f"{answer.label} {answer.score:.1%}" for answer in answers]
    sheet = draw.grid([image.read(path) for path in pictures], captions, 5)
    image.save(folder / "answers.png", sheet)
    right = sum(answer.label == path.name[0] for answer, path in zip(answers, pictures))
    print(
        _SUMMARY.format(
            accuracy=figures["accuracy"],
            count=figures["count"],
            seconds=run.history["seconds"].sum(),
            right=right,
            pictures=len(pictures),
            first=pictures[0],
            folder=folder,
        )
    )


def _free_folder(plain: Path) -> Path:
    """`plain`, or the first of plain-2, plain-3, ... that does not exist."""
    folder, number = plain, 2
    while folder.exists():
        folder, number = plain.with_name(f"{plain.name}-{number}"), number + 1
    return folder


def _write_pictures(split: Split, folder: Path) -> list[Path]:
    """The first `_PER_CLASS` pictures of every digit, enlarged, as folder/LABEL-NUMBER.png."""
    pixels = np.asarray(split.pixels)  # this set comes decoded
    paths = []
    for label in range(10):
        for number, place in enumerate(np.flatnonzero(split.labels == label)[:_PER_CLASS], 1):
            path = folder / f"{label}-{number}.png"
            image.save(path, steps.run(pixels[place], f"resize={_SIDE}"))
            paths.append(path)
    return paths


_SUMMARY = """
{accuracy:.1%} of {count} test digits are right, after {seconds:.0f} seconds of training.
Of {pictures} pictures written out as files it reads {right}: see {folder}/answers.png

  report      {folder}/report.html   (open it in a browser)
  checkpoint  {folder}/best.safetensors
  pictures    {folder}/pictures

Try next:
  sigak evaluate {folder} digits
  sigak predict {folder} {first}
  sigak data digits --draw digits.png
  sigak models vgg
  sigak train resnet18 my-pictures/ --pretrained --download   (one folder of pictures per class)
"""

if __name__ == "__main__":
    sys.exit(main())
