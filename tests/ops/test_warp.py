import numpy as np
import pytest
import torch
from torch.nn import functional

from sigak.ops.warp import (
    FILLS,
    add_noise,
    blend,
    is_exact,
    recolor,
    stretch,
    warp_cpu,
    warp_device,
)
from sigak.structures import SigakError


def smooth(count: int, height: int, width: int, channels: int) -> np.ndarray:
    """Pictures of long waves, on which both engines may differ by rounding only."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [
        127.5 + 120 * np.sin(x / (9.0 + c) + i) * np.cos(y / (11.0 + c) - i)
        for i in range(count)
        for c in range(channels)
    ]
    stacked = np.stack(waves, axis=-1).reshape(height, width, count, channels)
    return np.round(stacked.transpose(2, 0, 1, 3)).astype(np.uint8)


def random_matrices(count: int, height: int, width: int, tilt: float = 0.0) -> np.ndarray:
    generator = np.random.default_rng(1)
    angle = generator.uniform(-0.4, 0.4, count)
    scale = generator.uniform(0.8, 1.25, count)
    matrices = np.tile(np.eye(3), (count, 1, 1))
    matrices[:, 0, 0] = matrices[:, 1, 1] = scale * np.cos(angle)
    matrices[:, 1, 0] = scale * np.sin(angle)
    matrices[:, 0, 1] = -matrices[:, 1, 0]
    matrices[:, :2, 2] = generator.uniform(-6, 6, (count, 2))
    matrices[:, 2, :2] = generator.uniform(-tilt, tilt, (count, 2))
    return matrices


def on_device(images: np.ndarray, *args, **kwargs) -> np.ndarray:
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    return warp_device(tensor, *args, **kwargs).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("tilt", [0.0, 0.002])
def test_both_engines_draw_the_same_picture(fill: str, channels: int, tilt: float) -> None:
    images = smooth(4, 40, 56, channels)
    matrices = random_matrices(4, 40, 56, tilt)
    cpu = warp_cpu(images, matrices, (44, 50), fill)
    device = on_device(images, matrices, (44, 50), fill)
    difference = np.abs(cpu.astype(int) - device.astype(int))
    assert cpu.shape == device.shape == (4, 44, 50, channels)
    # The constant outside begins on a sharp edge, where the two may round a coverage differently.
    assert difference.mean() < 0.6
    assert np.percentile(difference, 99) <= 3


@pytest.mark.parametrize("shift", [-70.0, 3.5, 90.25])
def test_far_moves_agree_too(shift: float) -> None:
    images = smooth(1, 30, 40, 3)
    matrix = np.array([[[1.0, 0.05, shift], [0.0, 1.0, -shift], [0.0, 0.0, 1.0]]])
    for fill in FILLS:
        cpu, device = (
            engine(images, matrix, (30, 40), fill).astype(int) for engine in (warp_cpu, on_device)
        )
        assert np.abs(cpu - device).mean() < 1.0


def test_the_fast_road_gives_the_plain_pixels() -> None:
    """Three channels take a different way through OpenCV than one; each channel must come out the
    same.
    """
    images = smooth(3, 40, 56, 3)
    matrices = random_matrices(3, 40, 56)
    for fill in FILLS:
        together = warp_cpu(images, matrices, (40, 56), fill).astype(int)
        for channel in range(3):
            alone = warp_cpu(images[..., channel : channel + 1], matrices, (40, 56), fill)
            assert np.abs(together[..., channel] - alone[..., 0]).max() <= 2


@pytest.mark.parametrize("nearest", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_mirrors_and_whole_moves_are_exact(nearest: bool, channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, 9, 12, channels), dtype=np.uint8)
    mirror = np.array([[[-1.0, 0, 12], [0, 1, 0], [0, 0, 1]]])
    both = np.array([[[-1.0, 0, 12], [0, -1, 9], [0, 0, 1]]])
    moved = np.array([[[1.0, 0, 3], [0, 1, -2], [0, 0, 1]]])
    assert is_exact(np.concatenate([mirror, both, moved])).all()
    for engine in (warp_cpu, on_device):
        assert (engine(images, mirror, (9, 12), nearest=nearest) == images[:, :, ::-1]).all()
        assert (engine(images, both, (9, 12), nearest=nearest) == images[:, ::-1, ::-1]).all()
        black = engine(images, moved, (9, 12), "constant", nearest=nearest)
        assert (black[:, :7, 3:] == images[:, 2:, :9]).all()
        assert not black[:, 7:].any()
        assert not black[:, :, :3].any()
        padded = np.pad(images[0], ((0, 2), (3, 0), (0, 0)), mode="symmetric")[2:, :12]
        assert (engine(images, moved, (9, 12), "reflect", nearest=nearest)[0] == padded).all()
        edge = np.pad(images[0], ((0, 2), (3, 0), (0, 0)), mode="edge")[2:, :12]
        assert (engine(images, moved, (9, 12), "nearest", nearest=nearest)[0] == edge).all()


def test_what_is_not_exact() -> None:
    half = np.array([[1.0, 0, 0.5], [0, 1, 0], [0, 0, 1]])
    scaled = np.array([[2.0, 0, 0], [0, 1, 0], [0, 0, 1]])
    quarter_turn = np.array([[0.0, -1, 9], [1, 0, 0], [0, 0, 1]])
    assert not is_exact(np.stack([half, scaled, quarter_turn])).any()


def test_doubling_reads_pixel_centres() -> None:
    """At twice the size, result pixels 1 and 2 stand at 0.75 and 1.25: a quarter of the way to a
    neighbour.
    """
    images = np.array([0, 100], np.uint8).reshape(1, 1, 2, 1)
    double = np.array([[[2.0, 0, 0], [0, 1, 0], [0, 0, 1]]])
    for engine in (warp_cpu, on_device):
        drawn = engine(images, double, (1, 4), "nearest")[0, 0, :, 0].astype(int)
        assert np.abs(drawn - [0, 25, 75, 100]).max() <= 1


def test_nearest_invents_no_value_and_takes_the_given_outside() -> None:
    classes = np.random.default_rng(0).choice([0, 7, 200], (2, 30, 30, 1)).astype(np.uint8)
    matrices = random_matrices(2, 30, 30)
    cpu = warp_cpu(classes, matrices, (30, 30), "constant", nearest=True, value=255)
    device = on_device(classes, matrices, (30, 30), "constant", nearest=True, value=255)
    assert set(np.unique(cpu)) == set(np.unique(device)) == {0, 7, 200, 255}
    assert (cpu == device).mean() > 0.97


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_recolor_saturates_and_leaves_alpha(channels: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 9, channels), dtype=np.uint8)
    matrix = np.diag([2.0, 2.0, 2.0, 1.0])
    matrix[:3, 3] = -40
    expected = np.clip(picture.astype(int) * 2 - 40, 0, 255)
    if channels == 4:
        expected[..., 3] = picture[..., 3]
    changed = picture.copy()
    recolor(changed, matrix)
    assert np.abs(changed.astype(int) - expected).max() <= 1


def test_noise_and_blend() -> None:
    picture = np.array([[[250, 5, 100]]], np.uint8)
    above, below = (np.array([[v]], np.uint8) for v in ([20, 0, 0], [0, 20, 3]))
    add_noise(picture, above, below)
    assert picture.tolist() == [[[255, 0, 97]]]
    out = np.empty_like(picture)
    blend(picture, np.zeros_like(picture), 0.25, out)
    assert np.abs(out.astype(int) - [64, 0, 24]).max() <= 1


def test_an_unknown_fill_is_refused() -> None:
    with pytest.raises(SigakError, match="reflect, nearest, constant, received 'wrap'"):
        warp_cpu(smooth(1, 8, 8, 1), np.eye(3)[None], (8, 8), "wrap")


@pytest.mark.parametrize("size", [(31, 50), (7, 9), (1, 3)])
def test_a_plane_is_stretched_as_pytorch_does(size):
    plane = torch.rand(13, 17, generator=torch.Generator().manual_seed(0))
    expected = functional.interpolate(plane[None, None], size, mode="bilinear")[0, 0]
    torch.testing.assert_close(stretch(plane.T.contiguous().T, size), expected)
