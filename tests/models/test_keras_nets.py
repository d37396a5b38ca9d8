"""Keras Applications: the same weights give the same answers as in Keras itself."""

import importlib.util

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sigak import foreign, models
from sigak.models.keras_inception import OfThePixels, SamePool
from sigak.models.keras_resnet_v2 import Bottleneck
from sigak.models.nasnet import ReductionCell
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
    "nasnetlarge": ("NASNetLarge", "nasnet", (64, 97)),
    "resnet50v2": ("ResNet50V2", "resnet_v2", (64, 97, 224)),
    "resnet101v2": ("ResNet101V2", "resnet_v2", (64, 97)),
    "resnet152v2": ("ResNet152V2", "resnet_v2", (64, 97)),
    "inceptionv3": ("InceptionV3", "inception_v3", (96, 139, 299)),
    "inceptionresnetv2": ("InceptionResNetV2", "inception_resnet_v2", (96, 139)),
    "xception": ("Xception", "xception", (96, 97, 299)),
    **{f"efficientnetb{n}": (f"EfficientNetB{n}", "efficientnet", (64, 97)) for n in range(8)},
}
# Networks whose conversion moves the convolutions' biases into batch norm, which rounds them to
# float32 again, and those where it leaves a layer out.
MOVED = ("resnet50", "resnet101", "resnet152")
FEWER = (*MOVED, *(f"efficientnetb{n}" for n in range(8)))


@pytest.fixture
def keras():
    """Keras in float64: a deep random network magnifies the rounding of float32 too much to tell it
    from a mistake.
    """
    import keras

    keras.config.set_floatx("float64")
    yield keras
    keras.config.set_floatx("float32")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="Keras is not installed")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NETWORKS)
def test_the_answers_are_those_of_keras(name, keras, tmp_path):
    kind, module, sizes = NETWORKS[name]
    random = np.random.default_rng(0)
    for number, side in enumerate(sizes):
        original = getattr(keras.applications, kind)(
            weights=None, input_shape=(side, side, 3), classifier_activation=None
        )
        if name not in FEWER:
            assert original.count_params() == models.entry(f"{name}-keras").parameters[0]
        count = 16 if side < 100 else 4  # large ones have pixels enough for batch norm
        pictures = random.integers(0, 256, (count, side, side, 3)).astype(np.float64)
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
            answers = network(images.float()).numpy()
            exact = network.double()(images).numpy()
        print(f"{name} {side} {ending}: {difference(exact, expected):.1e}", end=" ")
        print(f"(in float32 {difference(answers, expected):.1e})")
        assert difference(exact, expected) < (1e-3 if name in MOVED else 1e-5), side
        assert difference(answers, expected) < 0.02, side


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
            *scale, beta, mean, variance = layer.get_weights()
            scale = [random.normal(1, 0.1, gamma.shape) for gamma in scale]
            layer.set_weights([*scale, random.normal(0, 0.1, beta.shape), mean, variance])
            layer.momentum = 0.0  # one batch sets the statistics
        elif isinstance(layer, layers.Normalization):
            mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
            layer.set_weights([mean, std**2, np.int64(0)])
            layer.finalize_state()
        elif layer.weights:
            layer.set_weights([array_like(value.shape, random) for value in layer.weights])
    if norms:
        network(batch, training=True)
    for layer in network.layers:
        if layer.weights and not isinstance(layer, layers.Normalization):  # as a file holds them
            layer.set_weights([value.astype(np.float32) for value in layer.get_weights()])


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


STATES = {
    "torch": {"net.conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)},
    "keras": {
        **{f"conv1_conv/{i}": torch.zeros(shape) for i, shape in enumerate([(1, 1, 1, 2), (2,)])},
        **{f"conv1_bn/{i}": torch.zeros(2) for i in range(4)},
        **{f"conv2d_{n}/0": torch.zeros(1, 1, 1, 2) for n in range(300)},
    },
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_other_files_are_left_to_their_own_readings(state):
    for name in models.names("*-keras"):
        (weights,) = models.entry(name).weights
        assert len(weights.convert(dict(state))) <= len(state), name


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


def tiny(name):
    torch.manual_seed(0)
    return models.create(name, classes=3, **models.entry(name).tiny).eval()


def seen_by(module):
    """A list that fills with what goes into `module`."""
    seen = []
    module.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs))
    return seen


def test_resnet_v2_halves_at_the_end_of_a_stage():
    with torch.device("meta"):
        stages = models.create("resnet50v2-keras").stages
    strides = [[block.stride for block in stage] for stage in stages]
    assert strides == [[1, 1, 2], [1, 1, 1, 2], [1, 1, 1, 1, 1, 2], [1, 1, 1]]
    block = Bottleneck(4, 1, stride=2)
    nn.init.zeros_(block.conv3.weight)
    nn.init.zeros_(block.conv3.bias)
    images = torch.randn(1, 4, 7, 6)
    assert torch.equal(block(images), images[:, :, ::2, ::2])  # as it came in, negative values too


def test_zeros_win_at_the_border_of_resnet_v2():
    network = tiny("resnet50v2-keras")
    nn.init.zeros_(network.stem.weight)
    nn.init.constant_(network.stem.bias, -1)
    seen = seen_by(network.stages)
    network(torch.rand(1, 3, 32, 32))
    (maps,) = seen
    assert maps[0, 0, 0].abs().max() == 0
    assert maps[0, 0, :, 0].abs().max() == 0
    assert (maps[0, 0, 1:, 1:] == -1).all()


@pytest.mark.parametrize("size", [(1, 1), (4, 7)])
def test_averages_are_of_the_pixels_there_are(size):
    maps = torch.rand(2, 3, *size)
    expected = F.avg_pool2d(maps, 3, 1, padding=1, count_include_pad=False)
    torch.testing.assert_close(OfThePixels()(F.avg_pool2d(maps, 3, 1, padding=1)), expected)


def test_max_pools_begin_at_the_first_pixel_of_an_even_side():
    maps = -torch.arange(1.0, 25).view(1, 1, 4, 6)[:, :, :, :5]  # 4x5, the first pixel the largest
    assert SamePool()(maps).tolist() == [[[[-1, -2, -4], [-13, -14, -16]]]]


def test_layers_without_a_name_are_told_by_their_number():
    (weights,) = models.entry("inceptionv3-keras").weights
    kernels = {f"conv2d_{n}/0": torch.full((1, 1, 2, 2), float(n)) for n in range(189, 93, -1)}
    norms = {f"batch_normalization_{n}/{i}": torch.full((2,), float(n))
             for n in (100, 99, 9) for i in range(3)}  # fmt: skip
    ours = weights.convert(kernels | norms)
    assert ours["net.Conv2d_1a_3x3.conv.weight"].max() == 94
    assert ours["net.Mixed_7c.branch_pool.1.conv.weight"].max() == 187
    assert ours["net.conv2d_188.weight"].max() == 188  # one too many
    stem = [ours[f"net.Conv2d_{part}_3x3.bn.bias"].max() for part in ("1a", "2a", "2b")]
    assert stem == [9, 99, 100]
    assert "net.Conv2d_1a_3x3.bn.weight" not in ours
    first = weights.convert({"convolution2d_1/0": torch.rand(1, 1, 2, 2)})
    assert list(first) == ["net.Conv2d_1a_3x3.conv.weight"]


def test_batch_norm_without_a_scale_neither_learns_nor_saves_one():
    network = tiny("inceptionv3-keras")
    assert not [key for key in network.state_dict() if key.endswith("bn.weight")]
    assert not [key for key, _ in network.named_parameters() if key.endswith("bn.weight")]
    assert sum(key.endswith("bn.bias") for key in network.state_dict()) == 94


def test_xception_has_its_layers_in_kerass_blocks():
    (weights,) = models.entry("xception-keras").weights
    kernels = [torch.rand(3, 3, 4, 1), torch.rand(1, 1, 4, 5)]
    layers = ("block2_sepconv1", "block2_sepconv2", "block13_sepconv2", "block14_sepconv1")
    state = {f"{layer}/{i}": kernel for layer in layers for i, kernel in enumerate(kernels)}
    ours = weights.convert(state)
    with torch.device("meta"):
        known = models.create("xception-keras").state_dict()
    assert ours.keys() <= known.keys()
    parts = ("block1.rep.0", "block1.rep.3", "block12.rep.4", "conv3")
    assert [f"net.{part}.conv1.weight" for part in parts] == list(ours)[::2]
    assert torch.equal(ours["net.conv3.pointwise.weight"][1, 2], kernels[1][:, :, 2, 1])


def test_nasnet_large_passes_by_its_reduction_cells():
    with torch.device("meta"):
        full = models.create("nasnetlarge-keras")
    assert (len(full.cells), full.classifier.in_features) == (22, 4032)
    network = tiny("nasnetlarge-keras")
    inputs = [seen_by(cell) for cell in network.cells]
    network(torch.rand(1, 3, 48, 48))
    kinds = [isinstance(cell, ReductionCell) for cell in network.cells]
    assert kinds == [True, True, False, True, False, True, False]
    for place in (4, 6):  # the cells behind
        assert inputs[place][0] is inputs[place - 1][0]
    assert inputs[5][0] is inputs[4][1]
