"""A picture that is embedded once and then answers prompts in milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sigak.asking import Prompts
from sigak.io import image
from sigak.prediction import Predictor, load
from sigak.structures import Batch, Sample, SigakError
from sigak.tasks._everything import precise
from sigak.tasks.prompt import Question, Segments, answer, questions

__all__ = ["Session"]


class Session:
    """Segment Anything, asked about one picture again and again.

        session = sigak.Session("sam-b.safetensors", "photo.jpg")
        found = session.ask(points=[(120, 80)])
        better = session.ask(points=[(120, 80), (150, 90, 0)], mask=found.segments[0].coarse)

    checkpoint: as `sigak.load` takes it; picture: as `sigak.io.image.read` does; half: the picture
    is embedded in bfloat16. `embedding` (1, d, h, w) is what was made of the picture.
    """

    def __init__(
        self,
        checkpoint: str | Path | Predictor,
        picture: Any,
        *,
        half: bool = False,
        device: str = "auto",
    ) -> None:
        self.predictor = load(checkpoint, device=device)
        if self.predictor.task.name != "prompt":
            raise SigakError(
                f"a session needs a network that answers prompts, such as sam-b, received a "
                f"checkpoint of the task {self.predictor.task.name}"
            )
        self.picture, self.half = picture, half
        ready, self._matrix, self.size = image.load(picture, self.predictor.preparation)
        self._inner = (ready.shape[0], ready.shape[1])
        self.name = str(picture) if isinstance(picture, str | Path) else "picture"
        sample = Sample(ready, self.name, 0, matrix=self._matrix, size=self.size)
        engine = self.predictor.engine
        batch = Batch.of([sample]).to(engine.device).floating()
        with precise(half, engine.device):
            self.embedding: torch.Tensor = engine(batch.images).float()

    def ask(
        self,
        points: Sequence[Any] = (),
        box: Sequence[float] | None = None,
        mask: np.ndarray | None = None,
        *,
        every: bool = False,
    ) -> Segments:
        """One object. points (x, y), or (x, y, 0) for what does not belong to it; box (x1, y1, x2,
        y2); mask: `coarse` of an earlier answer. Of a single point the best of three meanings is
        answered, with `every` all three.
        """
        asked = Prompts(point=list(points), box=[] if box is None else [box])  # type: ignore[list-item]
        found = questions(asked, known=mask is not None) or [Question()]
        return self.ask_all([Question(found[0].points, found[0].box, mask)], every=every)

    def ask_all(self, asked: Sequence[Question], *, every: bool = False) -> Segments:
        """Several objects, a mask each (with `every` three)."""
        frames = (self._inner, self.size, self._matrix)
        network = self.predictor.engine.network
        found = answer(network, self.embedding, asked, frames, every=every)
        return Segments(self.name, self.size, found, self.picture)

    def everything(self, **settings: Any) -> Segments:
        """Masks of all that is on the picture; settings: fields of `sigak.asking.Prompts`."""
        settings = {"half": self.half} | settings | {"everything": True}
        [found] = self.predictor.predict(self.picture, **settings)
        return found  # type: ignore[no-any-return]
