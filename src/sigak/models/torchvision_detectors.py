"""SSD, SSDlite, Faster R-CNN and Mask R-CNN, built by torchvision (BSD-3-Clause).

"SSD: single shot multibox detector", Liu et al. 2015, https://arxiv.org/abs/1512.02325; SSDlite:
"MobileNetV2", Sandler et al. 2018, https://arxiv.org/abs/1801.04381, on the backbone of "Searching
for MobileNetV3", Howard et al. 2019, https://arxiv.org/abs/1905.02244; "Faster R-CNN: towards
real-time object detection with region proposal networks", Ren et al. 2015,
https://arxiv.org/abs/1506.01497, on "Feature pyramid networks for object detection", Lin et al.
2016, https://arxiv.org/abs/1612.03144; "Mask R-CNN", He et al. 2017,
https://arxiv.org/abs/1703.06870.

torchvision's layers, anchors, matching and losses are used as they are; the house resizes and
normalises. Inside, output 0 is the background and output k + 1 the class k; outside there is no
background.

Input (B, 3, H, W) RGB in [0, 1]. Raw output: see the classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigak.layers.normalize import Normalize
from sigak.models._coco_names import COCO91
from sigak.models._detector import Detector, candidates
from sigak.models._entry import Entry, Input, Weights
from sigak.models._tiles import Tiles
from sigak.ops.boxes import iou
from sigak.structures import Instances, SigakError

__all__ = ["MODELS", "SSD", "FasterRCNN", "MaskRCNN"]

_SSD300 = "ssd300_vgg16"
_SSDLITE = "ssdlite320_mobilenet_v3_large"
_MOST = 100  # boxes of a picture that Faster R-CNN reports
_LEAST = 0.001  # the score they exceed; `decode` asks for more
_EPS = 1e-5  # of batch norm
_SIDE = 28  # of a predicted mask, whatever the size of its box


def _refuse_gray(channels: int) -> None:
    if channels != 3:
        raise SigakError(
            f"torchvision's detectors take pictures of 3 channels, received {channels}; "
            "leave --color out"
        )


def _targets(truth: Sequence[Instances], device: torch.device) -> list[dict[str, Tensor]]:
    """Truth as torchvision takes it: every box has an area, and label 0 is the background."""
    solid = [t[(t.boxes[:, 2:] > t.boxes[:, :2]).all(1)] for t in truth]
    targets = []
    for t in solid:
        told = {"boxes": t.boxes.float().to(device), "labels": t.labels.to(device) + 1}
        if t.masks is not None:
            told["masks"] = t.masks.planes().to(device, torch.uint8)
        targets.append(told)
    return targets


def _image_list(images: Tensor) -> Any:
    """Pictures that all fill their canvas, as torchvision's parts take them."""
    from torchvision.models.detection.image_list import ImageList

    return ImageList(images, [(images.shape[2], images.shape[3])] * len(images))


# ------------------------------------------------------------------ one stage


class SSD(Detector):
    """builder: torchvision's name of SSD300 (on VGG-16) or SSDlite (on MobileNetV3); width: share
    of the channels of the latter's backbone.

    SSD300 takes pictures of 300 x 300 alone, SSDlite of any one size. Raw output: codes (B, M, 4)
    of boxes against the M default boxes, 8,732 or, at 320 x 320, 3,234; logits (B, M, 1 + classes).
    """

    head = ("net.head.classification_head",)
    stride = 0  # default boxes are shares of the canvas, which is the one it was built for

    def __init__(
        self,
        *,
        classes: int,
        channels: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        builder: str = _SSD300,
        width: float = 1.0,
    ) -> None:
        from torchvision.models import get_model

        super().__init__()
        _refuse_gray(channels)
        self.lite = builder == _SSDLITE
        if not self.lite and tuple(size) != (300, 300):
            raise SigakError(
                f"SSD300 takes pictures of 300x300 alone, received {size[0]}x{size[1]}; leave "
                "--size out, or take ssdlite320, which learns any size"
            )
        self.nms_iou = 0.55 if self.lite else 0.45  # type: ignore[misc]
        self.normalize = Normalize(mean, std)
        args = {"width_mult": width} if self.lite else {}
        self.net: Any = get_model(
            builder, weights=None, weights_backbone=None, num_classes=classes + 1, **args
        )

    def raw(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) in [0, 1] -> codes (B, M, 4), logits (B, M, 1 + classes)."""
        features = self.net.backbone(self.normalize(images))
        outputs = self.net.head(list(features.values()))
        return outputs["bbox_regression"], outputs["cls_logits"]

    def loss(
        self, raw: Any, truth: Sequence[Instances], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Sums over the default boxes that learn an object, divided by their number: smooth L1 of
        the codes, and cross-entropy, to which for each of them the three worst of the other boxes
        of its picture add theirs as background. A picture without objects thus teaches nothing.
        """
        codes, logits = raw
        anchors = self.anchors(size).to(codes.device)
        targets = _targets(truth, codes.device)
        matches = [self._match(t["boxes"], anchors) for t in targets]
        outputs = {"bbox_regression": codes, "cls_logits": logits}
        found = self.net.compute_loss(targets, outputs, [anchors] * len(targets), matches)
        box, cls = found["bbox_regression"], found["classification"]
        return {"loss": box + cls, "box": box, "cls": cls}

    def _match(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """The object that each default box learns, (M,) int64, -1 for none."""
        if not len(boxes):
            return torch.full((len(anchors),), -1, device=anchors.device)
        return self.net.proposal_matcher(iou(boxes, anchors))  # type: ignore[no-any-return]

    def decode(self, raw: Any, size: tuple[int, int], conf: float) -> list[Instances]:
        """Candidates whose class probability is above `conf`, before NMS."""
        codes, logits = raw
        anchors = self.anchors(size).to(codes.device)
        boxes = [self.net.box_coder.decode_single(one, anchors) for one in codes]
        return candidates(torch.stack(boxes), logits.softmax(2)[..., 1:], conf)

    def anchors(self, size: tuple[int, int]) -> Tensor:
        """(M, 4) xyxy, the default boxes of a canvas of `size` (H, W), on the CPU."""
        maps = [torch.empty(0, 1, *grid) for grid in self._grids(size)]
        images = torch.empty(1, 0, *size)  # nothing but its size is looked at
        boxes: Tensor = self.net.anchor_generator(_image_list(images), maps)[0]
        return boxes

    def _grids(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """The (H, W) of the six maps; each of SSDlite's halves the one before, rounded up."""
        if not self.lite:
            return [(side, side) for side in (38, 19, 10, 5, 3, 1)]
        return [(-(-size[0] // 2**k), -(-size[1] // 2**k)) for k in range(4, 10)]


# ------------------------------------------------------------------ two stages


class FasterRCNN(Detector):
    """backbone: a ResNet of torchvision; width: channels of its feature pyramid; hidden: width of
    the two layers that judge a proposal; frozen: batch norms keep the statistics and scales of
    pretrained weights, without which they do nothing; anchor: pixels a side of the smallest of
    five, each twice the one before; regions: proposals of a picture that the second stage learns
    from.

    What is learnt depends on the proposals of the moment, so that there is no loss of raw output:
    call the network with the truth. Raw output: of the 100 best boxes, after their suppression,
    corners (B, 100, 4), scores (B, 100) and labels (B, 100); where there are fewer, the score is 0.
    """

    head: tuple[str, ...] = ("net.roi_heads.box_predictor",)
    nms_iou = 0.5
    finished = True

    def __init__(
        self,
        *,
        classes: int,
        channels: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        backbone: str = "resnet50",
        width: int = 256,
        hidden: int = 1024,
        frozen: bool = False,
        anchor: int = 32,
        regions: int = 512,
    ) -> None:
        from torchvision.models.detection.anchor_utils import AnchorGenerator
        from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

        super().__init__()
        _refuse_gray(channels)
        self.normalize = Normalize(mean, std)
        sides = tuple((anchor * 2**level,) for level in range(5))
        self.net: Any = self._network(
            _pyramid(backbone, width, frozen),
            width,
            classes,
            rpn_anchor_generator=AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * 5),
            box_head=TwoMLPHead(width * 7 * 7, hidden),  # regions are pooled to 7 x 7
            box_predictor=FastRCNNPredictor(hidden, classes + 1),
            box_score_thresh=_LEAST,
            box_nms_thresh=self.nms_iou,
            box_detections_per_img=_MOST,
            box_batch_size_per_image=regions,
        )

    def _network(self, backbone: nn.Module, width: int, classes: int, **parts: Any) -> Any:
        """torchvision's network of these parts."""
        from torchvision.models.detection import FasterRCNN as Network

        return Network(backbone, **parts)

    def forward(self, images: Tensor, truth: Sequence[Instances] | None = None) -> Any:
        """Raw output; with the truth {"loss", "box" and "cls" of the second stage, "proposal_box"
        and "obj" of the first}, in evaluation mode too.
        """
        if truth is None:
            return self.raw(images)
        targets, batch = _targets(truth, images.device), _image_list(images)
        with _stages(self.net, self._features(images), learning=True) as features:
            proposals, first = self.net.rpn(batch, features, targets)
            _, second = self.net.roi_heads(features, proposals, batch.image_sizes, targets)
        found = first | second
        parts = {ours: found[theirs] for ours, theirs in _LOSSES.items() if theirs in found}
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def raw(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, 3, H, W) in [0, 1] -> boxes (B, 100, 4), scores and labels (B, 100)."""
        return self._boxes(images, self._features(images))

    def _features(self, images: Tensor) -> dict[str, Tensor]:
        """The pyramid's maps by torchvision's names."""
        features: dict[str, Tensor] = self.net.backbone(self.normalize(images))
        return features

    def _boxes(self, images: Tensor, features: dict[str, Tensor]) -> tuple[Tensor, ...]:
        heads, batch = self.net.roi_heads, _image_list(images)
        with _stages(self.net, features, learning=False) as features:
            proposals, _ = self.net.rpn(batch, features)
            pooled = heads.box_head(heads.box_roi_pool(features, proposals, batch.image_sizes))
            judged = heads.box_predictor(pooled)
            found = heads.postprocess_detections(*judged, proposals, batch.image_sizes)
        boxes, scores, labels = found
        return (
            torch.stack([F.pad(one, (0, 0, 0, _MOST - len(one))) for one in boxes]),
            torch.stack([F.pad(one, (0, _MOST - len(one))) for one in scores]),
            torch.stack([F.pad(one - 1, (0, _MOST - len(one))) for one in labels]),
        )

    def decode(self, raw: Any, size: tuple[int, int], conf: float) -> list[Instances]:
        """The boxes that score above `conf`."""
        return [
            Instances(boxes, labels.long(), scores)[scores > conf]
            for boxes, scores, labels in zip(*raw, strict=True)
        ]


class MaskRCNN(FasterRCNN):
    """`FasterRCNN` with a third branch that draws a mask of 28 x 28 into each box; its hidden
    layers have `width` channels.

    Raw output: as of `FasterRCNN`, and the pyramid's maps of strides 4 to 32, from which masks are
    drawn for those boxes alone that are asked for.
    """

    head = ("net.roi_heads.box_predictor", "net.roi_heads.mask_predictor")

    def _network(self, backbone: nn.Module, width: int, classes: int, **parts: Any) -> Any:
        from torchvision.models.detection import MaskRCNN as Network
        from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

        mask_head = MaskRCNNHeads(width, (width,) * 4, dilation=1)
        predictor = MaskRCNNPredictor(width, width, classes + 1)
        return Network(backbone, mask_head=mask_head, mask_predictor=predictor, **parts)

    def forward(self, images: Tensor, truth: Sequence[Instances] | None = None) -> Any:
        """As `FasterRCNN.forward`, and "mask"; the truth must have masks."""
        if truth is not None and any(t.masks is None for t in truth):
            raise SigakError("Mask R-CNN learns from masks, and these objects have boxes alone")
        return super().forward(images, truth)

    def raw(self, images: Tensor) -> tuple[Tensor, ...]:
        """As `FasterRCNN.raw`, and four maps (B, C, H / s, W / s) for s = 4, 8, 16 and 32."""
        features = self._features(images)
        levels = self.net.roi_heads.mask_roi_pool.featmap_names
        return (*self._boxes(images, features), *(features[name] for name in levels))

    def decode(self, raw: Any, size: tuple[int, int], conf: float) -> list[Instances]:
        """The boxes that score above `conf`, each with its `soft` mask."""
        found = super().decode(raw[:3], size, conf)
        heads = self.net.roi_heads
        features = dict(zip(heads.mask_roi_pool.featmap_names, raw[3:], strict=True))
        with torch.no_grad(), _stages(self.net, features, learning=False) as features:
            regions = [one.boxes for one in found]
            pooled = heads.mask_roi_pool(features, regions, [size] * len(found))
            logits = heads.mask_predictor(heads.mask_head(pooled))  # (N, 1 + K, 28, 28)
        labels = torch.cat([one.labels for one in found]) + 1
        chosen = logits[torch.arange(len(labels), device=labels.device), labels].sigmoid()
        for one, tiles in zip(found, chosen.split([len(one) for one in found]), strict=True):
            one.soft = Tiles(one.boxes, tiles)
        return found


_LOSSES = {
    "box": "loss_box_reg",
    "cls": "loss_classifier",
    "proposal_box": "loss_rpn_box_reg",
    "obj": "loss_objectness",
    "mask": "loss_mask",
}


def _pyramid(backbone: str, width: int, frozen: bool) -> nn.Module:
    """A ResNet whose four stages become maps of `width` channels at strides 4 to 32, and a last
    one of 64; with torchvision's names.
    """
    from torchvision.models import get_model
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.ops import FrozenBatchNorm2d

    norm = FrozenBatchNorm2d if frozen else nn.BatchNorm2d
    resnet: Any = get_model(backbone, weights=None, norm_layer=norm)
    stages = {f"layer{i + 1}": str(i) for i in range(4)}
    channels = [resnet.inplanes // 8 * 2**i for i in range(4)]
    return BackboneWithFPN(resnet, stages, channels, width)  # type: ignore[no-any-return]


@contextmanager
def _stages(net: Any, maps: dict[str, Tensor], *, learning: bool) -> Iterator[dict[str, Tensor]]:
    """Both stages compute losses, or boxes, whatever mode the network is in (they hold no layers
    that the mode changes), and in float32: half precision has too few digits for the corners of
    proposals.
    """
    training = net.rpn.training, net.roi_heads.training
    net.rpn.train(learning)
    net.roi_heads.train(learning)
    try:
        with torch.autocast(maps["0"].device.type, enabled=False):
            yield {name: level.float() for name, level in maps.items()}
    finally:
        net.rpn.train(training[0])
        net.roi_heads.train(training[1])


# ------------------------------------------------------------------ table


def _convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's names -> ours."""
    return {f"net.{name}": value for name, value in state.items()}


def _convert_rcnn(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of today and of the file, which is older. Its batch norms were trained without an
    epsilon: taking ours off the variances leaves each sum as it was.
    """
    renamed = {}
    for name, value in state.items():
        if name.startswith("rpn.head.conv.") and name.count(".") == 3:
            name = name.replace("head.conv.", "head.conv.0.0.")
        elif "_blocks." in name and name.count(".") == 4:
            part, _, kind = name.rpartition(".")
            name = f"{part}.0.{kind}"
        renamed[name] = value - _EPS if name.endswith("running_var") else value
    return _convert(renamed)


def _weights(file: str, average_precision: float, convert: Any = _convert) -> Weights:
    return Weights(
        tag="coco",
        url=f"https://download.pytorch.org/models/{file}.pth",
        sha256=file.rpartition("-")[2],
        licence="BSD-3-Clause",
        trained_on="COCO train2017",
        classes=90,
        score={"mAP": average_precision},
        convert=convert,
        names=COCO91[:90],
    )


_AUGMENT = "flip=h,zoom=.3,shift=.1,hue=.015,saturation=.5,brightness=.3"
_ROW = partial(Entry, task="detect", classes=90, licence="BSD-3-Clause")
_INPUT = Input((800, 800), "rgb", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "rect", "bilinear")
_RCNN = partial(
    _ROW,
    build=FasterRCNN,
    input=_INPUT,
    weights=(_weights("fasterrcnn_resnet50_fpn_coco-258fb6c6", 37.0, _convert_rcnn),),
    tiny={"backbone": "resnet18", "width": 16, "hidden": 32, "size": (64, 64)},
    paper="https://arxiv.org/abs/1506.01497",
    skip={"export": "boxes are chosen picture by picture, which tracing fixes for one batch"},
    recipe={
        "optimizer": "sgd", "lr": 0.01, "weight_decay": 1e-4, "batch": 8, "warmup": 1.0,
        "clip": 10.0, "epochs": 26, "augment": "flip=h",
    },
)  # fmt: skip
_FASTER_RCNN = _RCNN(
    parameters=(41_861_526, 41_808_406),
    note="batch norms learn, as torchvision has it for training from nothing",
)
_MASKS = partial(
    _RCNN,
    build=MaskRCNN,
    task="instances",
    weights=(
        replace(
            _weights("maskrcnn_resnet50_fpn_coco-bf2d0c1e", 37.9, _convert_rcnn),
            score={"mAP": 37.9, "mask mAP": 34.6},
        ),
    ),
    paper="https://arxiv.org/abs/1703.06870",
)
# What fits small pictures and a CPU; no published weights have this form.
_SMALL: dict[str, Any] = {
    "input": replace(_INPUT, size=(320, 320)),
    "args": {"backbone": "resnet18", "width": 64, "hidden": 256, "anchor": 16, "regions": 128},
    "weights": (),
}
_MASK_RCNN = _MASKS(
    parameters=(44_507_633, 44_454_513),
    note="batch norms learn, as torchvision has it for training from nothing",
)
_SSDLITE320 = _ROW(
    build=SSD,
    input=Input((320, 320), "rgb", (0.5,) * 3, (0.5,) * 3, "squash", "bilinear"),
    parameters=(3_473_004, 3_440_060),
    args={"builder": _SSDLITE},
    weights=(_weights("ssdlite320_mobilenet_v3_large_coco-a79551df", 21.3),),
    tiny={"width": 0.25, "size": (64, 64)},
    paper="https://arxiv.org/abs/1801.04381",
    recipe={
        "optimizer": "sgd", "lr": 0.02, "weight_decay": 4e-5, "batch": 24, "warmup": 1.0,
        "clip": 10.0, "epochs": 100, "augment": _AUGMENT,
    },
)  # fmt: skip
MODELS = {
    "ssd300": _ROW(
        build=SSD,
        input=Input(
            (300, 300), "rgb", (0.48235, 0.45882, 0.40784), (1 / 255,) * 3, "squash", "bilinear"
        ),
        parameters=(35_641_826, 35_641_826),
        weights=(_weights("ssd300_vgg16_coco-b556d3b4", 25.1),),
        # VGG-16 has no small form.
        tiny={"builder": _SSDLITE, "width": 0.25, "size": (64, 64)},
        paper="https://arxiv.org/abs/1512.02325",
        recipe={
            "optimizer": "sgd", "lr": 2e-3, "weight_decay": 5e-4, "batch": 16, "warmup": 1.0,
            "clip": 10.0, "epochs": 100, "augment": _AUGMENT,
        },
    ),
    "ssdlite320": _SSDLITE320,
    "ssdlite": _SSDLITE320,
    "fasterrcnn-r50-fpn": _FASTER_RCNN,
    "fasterrcnn": _FASTER_RCNN,
    "fasterrcnn-r50-fpn-frozen": _RCNN(
        parameters=(41_808_406, 41_755_286),
        args={"frozen": True},
        note="batch norms stay as loaded: to train on from --pretrained in small batches",
    ),
    "fasterrcnn-r18-fpn": _RCNN(**_SMALL, parameters=(12_419_222, 12_409_622)),
    "maskrcnn-resnet50-fpn": _MASK_RCNN,
    "maskrcnn": _MASK_RCNN,
    "maskrcnn-resnet50-fpn-frozen": _MASKS(
        parameters=(44_454_513, 44_401_393),
        args={"frozen": True},
        note="batch norms stay as loaded: to train on from --pretrained in small batches",
    ),
    "maskrcnn-resnet18-fpn": _MASKS(**_SMALL, parameters=(12_589_297, 12_579_697)),
}  # fmt: skip
