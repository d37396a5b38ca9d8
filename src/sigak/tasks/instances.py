"""Instance segmentation: detection whose objects also have masks.

Everything of `detect`, on objects whose outlines are filled; a mask is decided for the boxes that
are left, in the frame of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, final

from torch import Tensor

from sigak.structures import Batch, SigakError
from sigak.tasks.detect import Detect

__all__ = ["TASK", "SegmentInstances"]


@final
class SegmentInstances(Detect):
    """See the module and `Detect`."""

    name = "instances"
    needs = ("objects", "masks")

    def monitor(self, validated: bool) -> str:
        return "val_mask_map" if validated else "loss"

    def steps(self, network: Any, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        if batch.instances is None or any(one.masks is None for one in batch.instances):
            raise SigakError(
                "instance segmentation learns from outlines, and these pictures have none; give "
                "COCO's polygons, YOLO's, or `scenes`, or train a detector on the boxes"
            )
        yield from super().steps(network, batch)


TASK = SegmentInstances
