"""Every detection family learns four pictures by heart: its loss and its decoding mean the same.

Batch norm stays with the statistics of the batch, as its running ones need more steps than these.
Objects below 22 pixels are left out: YOLOv8 gives an object no place as long as no box overlaps it,
so that small ones are only learnt once larger ones have taught what a box is, in many pictures.
"""

import pytest
import torch

from sigak import metrics, models
from sigak.data import scenes
from sigak.data.objects import to_instances
from sigak.ops.boxes import area
from sigak.ops.nms import nms

SIZE = (128, 128)
# family: (a network of it, other arguments, steps, learning rate)
FAMILIES = {
    "YOLOv8": ("yolov8n", {}, 100, 2e-3),
    "YOLOv5": ("yolov5n", {}, 100, 2e-3),
    "YOLOX": ("yolox-nano", {}, 120, 2e-3),
    "YOLOv2": ("yolov2-tiny", {"width": 1 / 4}, 100, 2e-3),
    "YOLOv3": ("yolov3-tiny", {"width": 1 / 4}, 100, 2e-3),
    "YOLOv4": ("yolov4-tiny", {"width": 1 / 4}, 100, 2e-3),
    "SSD": ("ssdlite", {}, 100, 2e-3),
    "EfficientDet": ("efficientdet-d0", {}, 80, 2e-3),
    "Faster R-CNN": ("fasterrcnn", {"backbone": "resnet18", "width": 32, "hidden": 64}, 60, 2e-3),
    "Localizer": ("localizer", {}, 120, 2e-3),
}


@pytest.fixture(scope="module")
def batch():
    """(pictures (4, 3, 128, 128) in [0, 1], their objects)."""
    drawn = [scenes.render(seed=0, index=i, size=SIZE) for i in range(4)]
    images = torch.stack([torch.from_numpy(pixels).permute(2, 0, 1) for pixels, _ in drawn]) / 255
    truth = [to_instances(objects) for _, objects in drawn]
    truth = [one[area(one.boxes) > 22**2] for one in truth]
    for one in truth:
        one.boxes, one.areas, one.points = one.boxes.float(), None, None
    return images.contiguous(memory_format=torch.channels_last), truth


def precision(network, images, truth):
    """AP50 of what the network finds in its training mode."""
    measure = metrics.Detection(list(scenes.CLASSES))
    with torch.no_grad():
        found = network.decode(network(images), SIZE, 0.001)
    for place, (one, wanted) in enumerate(zip(found, truth)):
        iou = 1.0 if network.finished else network.nms_iou
        kept = one[nms(one.boxes, one.scores, one.labels, iou, 100)]
        measure.add(kept, wanted, str(place))
    return measure.compute(detail=False)["map50"]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_learnt_by_heart(family, batch):
    name, changes, steps, lr = FAMILIES[family]
    images, truth = batch
    if family == "Localizer":  # it tells of the largest object alone
        truth = [one[area(one.boxes).argmax()[None]] for one in truth]
    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = models.create(name, classes=10, size=SIZE, **changes).train()
    if hasattr(network, "fit_anchors"):
        network.fit_anchors([one.boxes for one in truth])
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1, (step + 1) / 20, 2 * (1 - step / steps))
        loss = network(images, truth)["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
    found = precision(network, images, truth)
    print(f"{family}: {name}, AP50 {found:.2f} after {steps} steps")
    assert found > 0.9
