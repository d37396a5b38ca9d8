"""The progress bar of a training: pictures per second and the time that remains; plain lines
without a terminal.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

__all__ = ["Progress", "figures"]


class Progress:
    """One bar an epoch on a terminal's standard error; one line an epoch everywhere."""

    def __init__(self, visible: bool) -> None:
        self.console = Console(stderr=True, highlight=False, quiet=not visible, soft_wrap=True)
        self.bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not (visible and self.console.is_terminal),
        )
        self.task = self.bar.add_task("", note="", visible=False)

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.stop()

    def begin(self, description: str, total: int | None, done: int = 0) -> None:
        """Start a new bar of `total` pictures; None where nobody knows."""
        self.bar.reset(
            self.task, description=description, total=total, completed=done, note="", visible=True
        )

    def advance(self, pictures: int, note: str = "") -> None:
        """Count pictures."""
        self.bar.update(self.task, advance=pictures, note=note)

    def reach(self, pictures: int) -> None:
        """Set the count of pictures."""
        self.bar.update(self.task, completed=pictures)

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False)


def figures(logs: Mapping[str, float]) -> str:
    """ "loss 0.1234  accuracy 0.9876 ..." for an epoch's line."""
    shown = [f"{name} {value:.4f}" for name, value in logs.items() if name not in _RARE]
    return "  ".join([*shown, f"lr {logs['lr']:.2g}", f"{logs['images_per_second']:.0f} images/s"])


_RARE = ("epoch", "lr", "seconds", "images_per_second")
