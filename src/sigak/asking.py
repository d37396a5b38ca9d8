"""What a promptable network is asked, as one flat value; the flags of predict come from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sigak.errors import SigakError

__all__ = ["Prompts"]


def _(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


def _several(metavar: str, help: str) -> Any:
    return field(default_factory=list, metadata={"help": help, "metavar": metavar})


@dataclass(frozen=True)
class Prompts:
    """Questions to a network such as sam-b, in pixels of the file. Either points and boxes, or
    everything.
    """

    point: list[str] = _several(
        "X,Y[,0]",
        "sam: a point on the object, or with ,0 beside it; may be repeated, for one object",
    )
    box: list[str] = _several("X1,Y1,X2,Y2", "sam: a box around an object; each is one object")
    apart: bool = _(False, "sam: every point is an object of its own")
    all_masks: bool = _(False, "sam: all three meanings of a prompt instead of the best")
    everything: bool = _(False, "sam: masks of all that is on the picture, from a grid of points")
    points_per_side: int = _(32, "points of that grid along a side")
    pred_iou_thresh: float = _(0.88, "the IoU a mask of --everything is predicted to exceed")
    stability_score_thresh: float = _(
        0.95, "the least share of its area that stays when its cut-off moves"
    )
    stability_score_offset: float = _(1.0, "how far that cut-off moves either way, in logits")
    box_nms_thresh: float = _(0.7, "of two masks whose boxes overlap more, the better stays")
    crop_layers: int = _(0, "also look at 4 parts of the picture, at 2 layers 16 more, and so on")
    crop_nms_thresh: float = _(0.7, "the same between parts; the smaller part's mask stays")
    crop_overlap: float = _(512 / 1500, "share of the shorter side that neighbouring parts share")
    crop_points_downscale: int = _(1, "each layer's grid has so many times fewer points a side")
    min_area: int = _(0, "pixels below which holes are filled and islands taken away")
    half: bool = _(False, "sam: the picture is embedded in bfloat16: faster, a few masks differ")
    cutouts: bool = _(False, "with --save: also a transparent PNG of every object")

    def __post_init__(self) -> None:
        limits: dict[str, tuple[float, float]] = {
            "points_per_side": (1, 512),
            "pred_iou_thresh": (0, 1),
            "stability_score_thresh": (0, 1),
            "stability_score_offset": (0, 100),
            "box_nms_thresh": (0, 1),
            "crop_layers": (0, 4),
            "crop_nms_thresh": (0, 1),
            "crop_overlap": (0, 0.9),
            "crop_points_downscale": (1, 16),
            "min_area": (0, 1 << 30),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise SigakError(
                    f"--{name.replace('_', '-')} must be between {low} and {high}, received {value}"
                )
        if self.everything and (self.point or self.box or self.apart or self.all_masks):
            raise SigakError(
                "--everything asks for all there is: leave out --point, --box, --apart and "
                "--all-masks"
            )
