"""The published networks of Darknet as sections of a .cfg, from one line of words a stage.

Words: `64` a 3x3 convolution to 64 channels, `64/1` a 1x1 one, `64s2` with stride 2, `M` a 2x2
max-pool, `M1` the same with stride 1, `P5` a 5x5 max-pool with stride 1, `add` the sum with the
layer three before, `half` the second half of the channels, `route:-1,-4` other layers' outputs side
by side, `up` nearest-neighbour enlargement, `reorg` space to channels, `out` the convolution that
feeds a head, `yolo:0,1,2` a head with these anchors, `region` the head of YOLOv2.
"""

from __future__ import annotations

from sigak.io.darknet import Section

__all__ = ["LAYOUTS", "layout"]

_V2 = """
32 M 64 M 128 64/1 128 M 256 128/1 256 M 512 256/1 512 256/1 512 M
1024 512/1 1024 512/1 1024 1024 1024 route:-9 64/1 reorg route:-1,-4 1024 out region
"""
_V2_TINY = "16 M 32 M 64 M 128 M 256 M 512 M1 1024 512 out region"
_V3_TINY = """
16 M 32 M 64 M 128 M 256 M 512 M1 1024 256/1 512 out yolo:3,4,5
route:-4 128/1 up route:-1,8 256 out yolo:0,1,2
"""
_SPP = "P5 route:-2 P9 route:-4 P13 route:-1,-3,-5,-6"


def _residuals(stages: tuple[tuple[int, int], ...]) -> str:
    """DarkNet-53: each stage halves the size and adds residual blocks."""
    return " ".join(f"{c}s2 " + f"{c // 2}/1 {c} add " * count for c, count in stages)


def _v3(spp: str = "") -> str:
    body = "32 " + _residuals(((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)))
    fifth = f"512/1 1024 512/1 {spp and spp + ' 512/1'} 1024 512/1 1024 out yolo:6,7,8"
    fourth = "route:-4 256/1 up route:-1,61 " + "256/1 512 " * 3 + "out yolo:3,4,5"
    third = "route:-4 128/1 up route:-1,36 " + "128/1 256 " * 3 + "out yolo:0,1,2"
    return " ".join([body, fifth, fourth, third])


def _v4_backbone() -> str:
    """CSPDarknet53: half of each stage's channels pass its residual blocks by."""
    words = "32 64s2 64/1 route:-2 64/1 32/1 64 add 64/1 route:-1,-7 64/1 "
    for c, count in ((128, 2), (256, 8), (512, 8), (1024, 4)):
        half = c // 2
        words += f"{c}s2 {half}/1 route:-2 {half}/1 " + f"{half}/1 {half} add " * count
        words += f"{half}/1 route:-1,-{3 * count + 4} {c}/1 "
    return words


_V4_HEAD = f"""
512/1 1024 512/1 {_SPP} 512/1 1024 512/1
256/1 up route:85 256/1 route:-1,-3 256/1 512 256/1 512 256/1
128/1 up route:54 128/1 route:-1,-3 128/1 256 128/1 256 128/1 256 out yolo:0,1,2
route:-4 256s2 route:-1,-16 256/1 512 256/1 512 256/1 512 out yolo:3,4,5
route:-4 512s2 route:-1,-37 512/1 1024 512/1 1024 512/1 1024 out yolo:6,7,8
"""


def _v4_tiny() -> str:
    words = "32s2 64s2 "
    for c in (64, 128, 256):
        words += f"{c} half {c // 2} {c // 2} route:-1,-2 {c}/1 route:-6,-1 M "
    # The second head has the anchors 1, 2, 3, as published; the first of the list is not used.
    return words + "512 256/1 512 out yolo:3,4,5 route:-4 128/1 up route:-1,23 256 out yolo:1,2,3"


_ANCHORS_V2 = "0.57273,0.677385,1.87446,2.06253,3.33843,5.47434,7.88282,3.52778,9.77052,9.16828"
_ANCHORS_V3 = "10,13,16,30,33,23,30,61,62,45,59,119,116,90,156,198,373,326"
_ANCHORS_TINY = "10,14,23,27,37,58,81,82,135,169,344,319"
_ANCHORS_V4 = "12,16,19,36,40,28,36,75,76,55,72,146,142,110,192,243,459,401"

_REGION = {
    "anchors": _ANCHORS_V2, "softmax": "1", "rescore": "1", "thresh": ".6",
    "object_scale": "5", "noobject_scale": "1", "class_scale": "1", "coord_scale": "1",
}  # fmt: skip
_CIOU = {"ignore_thresh": ".7", "iou_loss": "ciou", "iou_normalizer": "0.07"}


def _yolo(anchors: str, ignore: str = ".5", **more: str) -> dict[str, str]:
    return {"anchors": anchors, "ignore_thresh": ignore, **more}


# name -> words of the layers, options of the heads (one for all, or one each), side of the input
LAYOUTS: dict[str, tuple[str, tuple[dict[str, str], ...], int]] = {
    "yolov2": (_V2, (_REGION,), 416),
    "yolov2-tiny": (_V2_TINY, (_REGION,), 416),
    "yolov3": (_v3(), (_yolo(_ANCHORS_V3, ".7"),) * 3, 416),
    "yolov3-tiny": (_V3_TINY, (_yolo(_ANCHORS_TINY, ".7"),) * 2, 416),
    "yolov3-spp": (_v3(_SPP), (_yolo(_ANCHORS_V3, ".7"),) * 3, 608),
    "yolov4": (
        _v4_backbone() + "leaky " + _V4_HEAD,
        tuple(
            _yolo(_ANCHORS_V4, **_CIOU, iou_thresh="0.213", scale_x_y=scale)
            for scale in ("1.2", "1.1", "1.05")
        ),
        608,
    ),
    "yolov4-tiny": (_v4_tiny(), (_yolo(_ANCHORS_TINY, **_CIOU, scale_x_y="1.05"),) * 2, 416),
}


def layout(name: str) -> list[Section]:
    """The sections of a published network, for 80 classes."""
    words, heads, side = LAYOUTS[name]
    sections = [Section("net", {"width": str(side), "height": str(side), "channels": "3"})]
    activation = "mish" if name == "yolov4" else "leaky"
    options = iter(heads)
    for word in words.split():
        if word == "leaky":  # from here on
            activation = word
            continue
        section = _section(word, activation)
        if section.kind in ("yolo", "region"):
            section.options.update(next(options), classes="80")
            pairs = len(section.reals("anchors")) // 2
            section.options["num"] = str(pairs)
            boxes = len(section.wholes("mask", range(pairs)))
            sections[-1].options["filters"] = str(85 * boxes)
        sections.append(section)
    return sections


def _section(word: str, activation: str) -> Section:
    """One word of the language above; what `out` has besides depends on the head after it."""
    if word[0].isdigit():
        filters, _, kernel = word.partition("/")
        filters, _, stride = filters.partition("s")
        options = {"batch_normalize": "1", "filters": filters, "size": kernel or "3"}
        options |= {"stride": stride or "1", "pad": "1", "activation": activation}
        return Section("convolutional", options)
    head, _, numbers = word.partition(":")
    if head == "yolo":
        return Section("yolo", {"mask": numbers})
    if head == "route":
        return Section("route", {"layers": numbers})
    if head[0] == "P":
        return Section("maxpool", {"size": head[1:], "stride": "1"})
    kind, options = _FIXED[head]
    return Section(kind, dict(options))


_FIXED = {
    "M": ("maxpool", {"size": "2", "stride": "2"}),
    "M1": ("maxpool", {"size": "2", "stride": "1"}),
    "add": ("shortcut", {"from": "-3", "activation": "linear"}),
    "half": ("route", {"layers": "-1", "groups": "2", "group_id": "1"}),
    "up": ("upsample", {"stride": "2"}),
    "reorg": ("reorg", {"stride": "2"}),
    "out": ("convolutional", {"size": "1", "stride": "1", "pad": "1", "activation": "linear"}),
    "region": ("region", {}),
}
