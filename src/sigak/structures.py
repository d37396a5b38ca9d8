"""The nouns every room speaks, and the conventions they share.

Conventions (stated here once, assumed everywhere):

* Images are RGB, gray or RGBA. On the CPU they are uint8 arrays (H, W, C); in a batch they are one
  tensor (B, C, H, W) in channels_last memory, uint8 0..255 until `Batch.floating` turns them into
  floats in [0, 1].
* A volume is a stack of D gray slices, (D, H, W, 1) float32 in [0, 1], in a batch (B, 1, D, H, W);
  its class map is (D, H, W). What is said of a picture's frame, `matrix` and `size`, holds for
  each slice.
* x points right, y points down, in **continuous pixels**: pixel i covers [i, i + 1). The mirror of
  x is W - x. Boxes are xyxy floats. Sizes are (H, W). Angles are radians.
* `matrix` (3x3) maps a point of the picture as it lies in the file (EXIF turned) to the picture as
  it is now. Geometry is only ever carried by this matrix; its inverse takes a prediction back to
  the file.
* An unknown label is `UNKNOWN` (-1) for pictures and instances, `IGNORE` (255) in class maps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sigak.errors import Failure, SigakError

__all__ = [
    "IGNORE",
    "UNKNOWN",
    "Batch",
    "Failure",
    "Instances",
    "Masks",
    "Sample",
    "SigakError",
    "SoftMasks",
    "stack_images",
]

UNKNOWN = -1
IGNORE = 255


@dataclass(frozen=True, eq=False)
class Masks:
    """Masks of N objects on a canvas of `size` (H, W), each kept only around the object: a hundred
    objects on 640 x 640 take about a megabyte, as whole planes 41.

    patches: N arrays (h, w) bool; corners (N, 2) int64: x, y of the first pixel of each. Patches
    lie within the canvas; that of an object without a pixel is empty.
    """

    patches: list[np.ndarray]
    corners: np.ndarray
    size: tuple[int, int]

    @classmethod
    def of(cls, planes: Tensor | np.ndarray) -> Masks:
        """From whole planes (N, H, W), of which what is not 0 belongs to the object."""
        patches, corners = [], []
        for plane in np.asarray(planes) != 0:
            rows, columns = (np.flatnonzero(plane.any(axis=axis)) for axis in (1, 0))
            top, left = (int(line[0]) if len(line) else 0 for line in (rows, columns))
            bottom, right = (int(line[-1]) + 1 if len(line) else 0 for line in (rows, columns))
            patches.append(plane[top:bottom, left:right].copy())
            corners.append((left, top))
        height, width = planes.shape[1:]
        return cls(patches, np.array(corners, np.int64).reshape(-1, 2), (int(height), int(width)))

    @classmethod
    def joined(cls, parts: Sequence[Masks]) -> Masks:
        """Those of several lists of objects on one canvas, in order."""
        patches = [patch for part in parts for patch in part.patches]
        return cls(patches, np.concatenate([part.corners for part in parts]), parts[0].size)

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, index: Tensor) -> Masks:
        """Those at an int64 index (M,)."""
        order = index.cpu().numpy()
        return Masks([self.patches[i] for i in order], self.corners[order], self.size)

    def planes(self) -> Tensor:
        """(N, H, W) bool."""
        whole = np.zeros((len(self), *self.size), bool)
        for plane, place, patch in zip(whole, self.windows(), self.patches):
            plane[place] = patch
        return torch.from_numpy(whole)

    def windows(self) -> list[tuple[slice, slice]]:
        """Rows and columns of the canvas that each patch covers."""
        return [
            (slice(y, y + patch.shape[0]), slice(x, x + patch.shape[1]))
            for (x, y), patch in zip(self.corners.tolist(), self.patches)
        ]

    def areas(self) -> Tensor:
        """(N,) int64 pixels."""
        return torch.tensor([int(np.count_nonzero(p)) for p in self.patches], dtype=torch.int64)


class SoftMasks(Protocol):
    """What a network says of the masks of N candidates: cheap to choose from, and decided only for
    those that are left.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor) -> SoftMasks:
        """Those at an int64 index (M,)."""

    def decided(self, boxes: Tensor, matrix: Tensor, size: tuple[int, int]) -> Masks:
        """The masks within their boxes (N, 4) in a frame of `size` (H, W), into which `matrix`
        (3, 3) leads from the network's canvas.
        """


@dataclass
class Instances:
    """Objects of one picture as arrays of equal length N. The same class holds truth and
    prediction.

    boxes (N, 4) float xyxy; labels (N,) int64; scores (N,) float in [0, 1]; masks `Masks`, which
    may be given as whole planes (N, H, W); points (N, K, 3) float x, y, visibility (0 unlabelled, 1
    hidden, 2 visible); texts N strings; ids (N,) int64; crowd (N,) bool, groups that are not learnt
    and forgive what is found in them; areas (N,) float square pixels, an object's own area where it
    is known; soft: of candidates, masks that are not decided yet.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor | None = None
    masks: Masks | None = None
    points: Tensor | None = None
    texts: list[str] | None = None
    ids: Tensor | None = None
    crowd: Tensor | None = None
    areas: Tensor | None = None
    soft: SoftMasks | None = None

    def __post_init__(self) -> None:
        if isinstance(self.masks, Tensor):
            self.masks = Masks.of(self.masks)
        if self.boxes.ndim != 2 or self.boxes.shape[1] != 4:
            raise SigakError(
                f"boxes must have shape (N, 4) as x1, y1, x2, y2, received "
                f"{tuple(self.boxes.shape)}"
            )
        for name, value in self._present():
            if len(value) != len(self.boxes):
                raise SigakError(
                    f"all fields of Instances must have the same length: boxes has "
                    f"{len(self.boxes)}, {name} {len(value)}"
                )

    def _present(self) -> list[tuple[str, Any]]:
        return [
            (f.name, getattr(self, f.name))
            for f in fields(self)
            if getattr(self, f.name) is not None
        ]

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Tensor) -> Instances:
        """The instances a bool mask (N,) or an int64 index (M,) picks, every field with them."""
        chosen = torch.as_tensor(index)
        order = chosen.nonzero()[:, 0] if chosen.dtype == torch.bool else chosen
        picked: dict[str, Any] = {
            name: [value[i] for i in order.tolist()] if isinstance(value, list) else value[order]
            for name, value in self._present()
        }
        return Instances(**picked)


@dataclass
class Sample:
    """One picture and whatever is known of it; the fields are kinds of knowledge, not tasks.

    image (H, W, C) uint8, or a volume (D, H, W, C) float32; label a class index, or a (K,) float
    vector of class weights; instances the objects on this picture; truth the same objects as the
    file has them, in its frame; class_map (H, W) or (D, H, W) uint8 class indices on this picture,
    truth_map reads that of the file, in its frame; matrix (3, 3) float64, file frame to now; size
    (H, W) of the file frame; source a path or a name like "digits#17"; origin what it was read
    from, to read it again.
    """

    image: np.ndarray
    source: str = ""
    index: int = -1
    label: int | np.ndarray | None = None
    instances: Instances | None = None
    truth: Instances | None = None
    class_map: np.ndarray | None = None
    truth_map: Callable[[], np.ndarray] | None = None
    target: np.ndarray | None = None
    matrix: np.ndarray = field(default_factory=lambda: np.eye(3))
    size: tuple[int, int] = (0, 0)
    origin: object = None

    def __post_init__(self) -> None:
        if (self.image.ndim, str(self.image.dtype)) not in ((3, "uint8"), (4, "float32")):
            raise SigakError(
                f"a sample's image must be uint8 (H, W, C), or of a volume float32 (D, H, W, C); "
                f"received {self.image.dtype} {self.image.shape}"
            )
        if self.size == (0, 0):
            self.size = (self.image.shape[-3], self.image.shape[-2])


@dataclass
class Batch:
    """Samples on one canvas.

    images (B, C, H, W) in channels_last memory, or volumes (B, C, D, H, W); labels (B,) int64 or
    (B, K) float class weights; matrix (B, 3, 3) float64; sizes the (H, W) of each file frame;
    instances on the canvas, truth in the file's frame; class_maps (B, H, W) uint8, of volumes (B,
    D, H, W), on the canvas, truth_maps read those of the files; targets (B, C, H, W), as many
    pictures of another domain; indices (B,) int64, the samples' places in their split (what
    randomness is keyed by); origins what each was read from.
    """

    images: Tensor
    indices: Tensor
    matrix: Tensor
    sizes: list[tuple[int, int]]
    sources: list[str]
    labels: Tensor | None = None
    instances: list[Instances] | None = None
    truth: list[Instances] | None = None
    class_maps: Tensor | None = None
    truth_maps: list[Any] | None = None
    targets: Tensor | None = None
    origins: list[object] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on `device`."""
        moved: dict[str, Any] = {
            f.name: value.to(device, non_blocking=True)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)

    def floating(self) -> Batch:
        """The same batch with float32 images and targets in [0, 1]; floating batches come back
        unchanged.
        """
        if self.images.is_floating_point():
            return self
        targets = None if self.targets is None else self.targets.float().div_(255.0)
        return replace(self, images=self.images.float().div_(255.0), targets=targets)

    def select(self, places: Tensor) -> Batch:
        """The samples at `places` (M,) int64 on the batch's device, in that order, copied."""
        chosen = places.tolist()
        picked: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                picked[f.name] = _take(value, places)
            elif value is not None:
                picked[f.name] = [value[i] for i in chosen]
        return replace(self, **picked)

    @classmethod
    def of(cls, samples: Sequence[Sample]) -> Batch:
        """Samples whose pictures have one size and one number of channels, on one canvas."""
        first = samples[0]
        maps = [s.class_map for s in samples]
        targets = [s.target for s in samples]
        return cls(
            images=stack_images([s.image for s in samples]),
            indices=torch.tensor([s.index for s in samples]),
            matrix=torch.from_numpy(np.stack([s.matrix for s in samples])),
            sizes=[s.size for s in samples],
            sources=[s.source for s in samples],
            origins=[s.origin for s in samples],
            labels=None if first.label is None else torch.tensor([s.label for s in samples]),
            instances=None if first.instances is None else [_known(s.instances) for s in samples],
            truth=None if first.truth is None else [_known(s.truth) for s in samples],
            class_maps=None if first.class_map is None else torch.from_numpy(np.stack(maps)),  # type: ignore[arg-type]
            truth_maps=None if first.truth_map is None else [s.truth_map for s in samples],
            targets=None if first.target is None else stack_images(targets),  # type: ignore[arg-type]
        )


def _known(instances: Instances | None) -> Instances:
    if instances is None:
        raise SigakError("all samples of a batch must carry instances, or none of them")
    return instances


def _take(value: Tensor, places: Tensor) -> Tensor:
    """Rows of a tensor; pictures keep their channels_last memory.

    On the CPU NumPy copies them: batches are gathered beside the training step, and a second thread
    that enters PyTorch's parallel loops would take the cores from the first.
    """
    if value.ndim == 4:
        return (
            _take(value.permute(0, 2, 3, 1).flatten(1), places)
            .view(-1, value.shape[2], value.shape[3], value.shape[1])
            .permute(0, 3, 1, 2)
        )
    if value.device.type == "cpu":
        return torch.from_numpy(np.take(value.numpy(), places.numpy(), axis=0))
    return value.index_select(0, places)


def stack_images(images: Sequence[np.ndarray]) -> Tensor:
    """Pictures (H, W, C) or volumes (D, H, W, C) of one size -> (B, C, H, W) or (B, C, D, H, W) of
    the same type, the channels last in memory.
    """
    return torch.from_numpy(np.stack(images)).movedim(-1, 1)
