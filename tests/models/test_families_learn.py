"""Every classification family trains one epoch on real pictures, and its loss falls.

The networks are whole but for what would take minutes: a smaller picture, fewer blocks, narrower
layers. The pictures are scikit-learn's digits in colour, no download.
"""

import numpy as np
import pytest
import torch
from torch import nn

import sigak
from sigak import models

BATCH = 16
# family: (a network of it, side of its pictures, other arguments, learning rate)
FAMILIES = {
    "LeNet": ("lenet5", 28, {}, 3e-3),
    "AlexNet": ("alexnet", 64, {}, 5e-4),
    "VGG": ("vgg11", 32, {"mlp_ratio": 1 / 16}, 3e-4),
    "GoogLeNet": ("googlenet", 64, {}, 1e-3),
    "ResNet": ("resnet50", 32, {"layers": (1, 1, 1, 1)}, 1e-3),
    "ResNetV2": ("resnet50v2", 32, {"layers": (1, 1, 1, 1)}, 1e-3),
    "Inception": ("inceptionv3", 75, {}, 1e-3),
    "InceptionResNet": ("inceptionresnetv2", 75, {}, 1e-3),
    "Xception": ("xception", 48, {}, 1e-3),
    "MobileNet": ("mobilenet-0.50", 64, {}, 1e-3),
    "MobileNetV2": ("mobilenetv2_050", 48, {}, 3e-3),
    "DenseNet": ("densenet121", 32, {"block_config": (2, 2, 2, 2)}, 1e-3),
    "NASNet": ("nasnetmobile", 48, {"repeats": 1, "filters": 8, "stem": 4}, 3e-3),
    "EfficientNet": ("efficientnetb0", 48, {}, 3e-3),
    "SqueezeNet": ("squeezenet", 64, {}, 3e-4),
    "ShuffleNet": ("shufflenet-g1", 64, {}, 1e-3),
    "ShuffleNetV2": ("shufflenet_v2_x0_5", 64, {}, 1e-3),
    "DarkNet-19": ("darknet19", 64, {"width": 1 / 4}, 1e-3),
    "DarkNet-53": ("darknet53", 64, {"width": 1 / 4}, 1e-3),
    "ConvMixer": ("convmixer", 21, {}, 3e-3),
    "ViT": ("vit-tiny-16", 64, {"depth": 4}, 3e-4),
    "LSTM": ("lstm-rows", 28, {}, 3e-3),
}


@pytest.fixture(scope="module")
def digits():
    """(pictures (N, 1, 8, 8) float in [0, 1], labels (N,)) of one epoch, in shuffled order."""
    split = sigak.load_data("digits").splits["train"]
    chosen = np.random.default_rng(0).permutation(len(split))
    pictures = torch.from_numpy(split.pixels[chosen]).permute(0, 3, 1, 2) / 255
    return pictures, torch.from_numpy(split.labels[chosen])


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_falls_over_an_epoch(family, digits):
    name, side, changes, lr = FAMILIES[family]
    torch.manual_seed(0)
    torch.set_num_threads(1)
    built = models.arguments(name, classes=10, size=(side, side), color="rgb", **changes)
    network = models.entry(name).build(**built).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr)
    losses = []
    for pictures, labels in zip(*(part.split(BATCH) for part in digits)):
        images = nn.functional.interpolate(pictures, (side, side), mode="bilinear")
        logits = network(images.expand(-1, 3, -1, -1))
        loss = nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    first, last = np.mean(losses[:5]), np.mean(losses[-10:])
    print(f"{family}: {name} at {side}, loss {first:.2f} -> {last:.2f}")
    assert np.isfinite(losses).all()
    assert last < 0.95 * first
