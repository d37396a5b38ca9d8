"""Keras Applications: the same weights give the same answers as in Keras itself."""

import importlib.util

import numpy as np
import pytest
import torch

from sigak import foreign, models
from sigak.models import keras_nets
from sigak.prediction import load

# name: (class in keras.applications, module of its preprocessing, sizes to compare at)
NETWORKS = {
    "vgg16": ("VGG16", "vgg16", (224,)),
    "vgg19": ("VGG19", "vgg19", (224,)),
    "resnet50": ("ResNet50", "resnet", (64, 97)),
    "resnet101": ("ResNet101", "resnet", (64, 97)),
    "resnet152": ("ResNet152", "resnet", (64, 97)),
    "densenet121": ("DenseNet121", "densenet", (64, 97)),
    "densenet169": ("DenseNet169", "densenet", (64, 97)),
    "densenet201": ("DenseNet201", "densenet", (64, 97)),
    "mobilenet": ("MobileNet", "mobilenet", (64, 96)),  # the same at multiples of 32 only
    "mobilenetv2": ("MobileNetV2", "mobilenet_v2", (64, 97)),
    "nasnetmobile": ("NASNetMobile", "nasnet", (64, 97, 224)),
    **{f"efficientnetb{n}": (f"EfficientNetB{n}", "efficientnet", (64, 97)) for n in range(8)},
}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="Keras is not installed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETWORKS)
def test_the_answers_are_those_of_keras(name, tmp_path):
    import keras

    kind, module, sizes = NETWORKS[name]
    random = np.random.default_rng(0)
    for number, side in enumerate(sizes):
        original = getattr(keras.applications, kind)(
            weights=None, input_shape=(side, side, 3), classifier_activation=None
        )
        pictures = random.integers(0, 256, (16, side, side, 3)).astype(np.float32)
        batch = getattr(keras.applications, module).preprocess_input(pictures.copy())
        fill(original, batch, random)
        ending = (".h5", ".weights.h5", ".keras")[number % 3]
        file = tmp_path / f"{name}{ending}"
        (original.save_weights if ending == ".weights.h5" else original.save)(file)
        out = foreign.adopt(
            file, f"{name}-keras", classes=None, size=(side, side), out=tmp_path / "x.safetensors"
        )
        expected = original.predict(batch[:2], verbose=0)
        network = load(out, device="cpu").network.eval()
        images = torch.from_numpy(pictures[:2] / 255).permute(0, 3, 1, 2)
        with torch.no_grad():
            answers = network(images).numpy()
            exact = network.double()(images.double()).numpy()
        # A deep random network magnifies the rounding of float32, in Keras as here.
        rounding = difference(answers, exact)
        assert rounding < 0.02, side
        assert difference(exact, expected) < 1e-3 + 2 * rounding, side


def difference(found, expected):
    """The largest one, as a share of what the pictures change: no common bias may hide it."""
    found, expected = found - found.mean(0), expected - expected.mean(0)
    return np.abs(found - expected).max() / np.abs(expected).max()


def fill(network, batch, random):
    """Random weights whose batch norms know the statistics of what they see, as after training:
    the pictures' signal then lives through all layers, and rounding errors do not grow.
    """
    from keras import layers

    norms = [layer for layer in network.layers if isinstance(layer, layers.BatchNormalization)]
    for layer in network.layers:
        if layer in norms:
            gamma, beta, *statistics = layer.get_weights()
            gamma, beta = (random.normal(middle, 0.1, gamma.shape) for middle in (1, 0))
            layer.set_weights([gamma, beta, *statistics])
            layer.momentum = 0.0  # one batch sets the statistics
        elif isinstance(layer, layers.Normalization):
            mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
            layer.set_weights([mean, std**2, np.int64(0)])
            layer.finalize_state()
        elif layer.weights:
            layer.set_weights([array_like(value.shape, random) for value in layer.weights])
    if norms:
        network(batch, training=True)


def array_like(shape, random):
    """A kernel by He's rule, depthwise ones (..., channels, 1) too, or a bias."""
    if len(shape) == 1:
        return random.normal(0, 0.1, shape)
    depthwise = len(shape) == 4 and shape[-1] == 1
    fan_in = np.prod(shape[:2]) if depthwise else np.prod(shape[:-1])
    return random.standard_normal(shape, np.float32) * np.sqrt(2 / fan_in)


# ------------------------------------------------------------------ without Keras


def test_stride_stands_first():
    with torch.device("meta"):
        network = models.create("resnet50-keras").net
    block = network.layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))


def test_other_files_are_left_to_their_own_readings():
    state = {"net.conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}
    for row in keras_nets.MODELS.values():
        for weights in row.weights:
            assert isinstance(weights.convert(state), dict)


def test_biases_before_batch_norm_move_into_its_mean():
    state = {
        "conv1_conv/0": torch.rand(7, 7, 3, 4),
        "conv1_conv/1": torch.tensor([1.0, 2.0, 3.0, 4.0]),
        **{f"conv1_bn/{i}": torch.full((4,), 10.0) for i in range(4)},
        "stranger/0": torch.rand(2, 3),
    }
    (weights,) = models.entry("resnet50-keras").weights
    ours = weights.convert(state)
    assert ours["net.bn1.running_mean"].tolist() == [9, 8, 7, 6]
    assert torch.equal(ours["net.conv1.weight"][1, 2], state["conv1_conv/0"][:, :, 0, 1])
    assert "net.conv1.bias" not in ours
    assert ours["net.stranger.weight"].shape == (3, 2)
