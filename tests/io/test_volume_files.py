"""Volumes: NIfTI files and arrays read, scaled and written back into their place."""

import sys

import nibabel
import numpy as np
import pytest

from sigak.io import image, volumes
from sigak.structures import SigakError

AFFINE = np.array([[-0.8, 0, 0, 30], [0, 1.5, 0, -20], [0, 0, 3.0, 7], [0, 0, 0, 1]])
READY = image.Preparation((8, 8), "gray", "native", depth=8, intensity=volumes.INTENSITY)


def write(path, values, affine=AFFINE, kind=nibabel.Nifti1Image):
    """A NIfTI file of values (x, y, z)."""
    kind(values, affine).to_filename(path)
    return path


def test_slices_come_last_in_the_file_and_first_here(tmp_path):
    values = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)  # x, y, z
    read = volumes.read(write(tmp_path / "a.nii.gz", values))
    assert read.shape == (4, 3, 2)
    assert all(read[z, y, x] == values[x, y, z] for x, y, z in np.ndindex(values.shape))
    found = volumes.describe(tmp_path / "a.nii.gz")
    assert found == volumes.Header((4, 3, 2), (3.0, 1.5, pytest.approx(0.8)), "LAS")


def test_scaled_integers_are_what_the_header_says(tmp_path):
    values = np.linspace(-1, 1, 27, dtype=np.float32).reshape(3, 3, 3)
    made = nibabel.Nifti1Image(values, AFFINE)
    made.set_data_dtype(np.int16)  # nibabel stores a slope beside the integers
    made.to_filename(tmp_path / "a.nii")
    np.testing.assert_allclose(volumes.read(tmp_path / "a.nii"), values.T, atol=1e-4)


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.NPY"])
def test_arrays_are_taken_as_they_are(tmp_path, name):
    values = np.arange(24.0).reshape(2, 3, 4)
    if name == "a.npz":
        np.savez_compressed(tmp_path / name, values)
    else:
        with open(tmp_path / name, "wb") as file:
            np.save(file, values)
    assert np.array_equal(volumes.read(tmp_path / name), values)
    assert volumes.describe(tmp_path / name) == volumes.Header((2, 3, 4))


def test_sides_of_one_beyond_the_third_do_not_matter(tmp_path):
    values = np.random.default_rng(0).normal(size=(4, 3, 2, 1)).astype(np.float32)
    read = volumes.read(write(tmp_path / "a.nii.gz", values))
    assert np.array_equal(read, values[..., 0].T)
    assert volumes.read(np.zeros((2, 3, 4, 1))).shape == (2, 3, 4)


def test_a_series_in_time_is_refused(tmp_path):
    path = write(tmp_path / "bold.nii.gz", np.zeros((4, 5, 6, 7), np.int16))
    for ask in (volumes.read, volumes.describe):
        with pytest.raises(SigakError, match=r"bold.* 4 x 5 x 6 x 7; .*series in time .* one vol"):
            ask(path)
    with pytest.raises(SigakError, match="the given array has the shape 4 x 5; a volume has three"):
        volumes.read(np.zeros((4, 5)))
    with pytest.raises(SigakError, match="has the shape 0 x 5 x 5"):
        volumes.read(np.zeros((0, 5, 5)))


def test_colours_and_words_are_refused(tmp_path):
    color = np.zeros((2, 2, 2), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    path = write(tmp_path / "rgb.nii", color)
    with pytest.raises(SigakError, match=r"rgb\.nii holds .*; expected one number a voxel"):
        volumes.read(path)
    with pytest.raises(SigakError, match="the given array holds <U1; expected one number"):
        volumes.read(np.array([[["a"]]]))


def test_nothing_in_an_array_file_is_executed(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[[{}]]], object), allow_pickle=True)
    with pytest.raises(SigakError, match=r"a\.npy is damaged or cut short"):
        volumes.read(tmp_path / "a.npy")


def test_damaged_files_are_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 999, (20, 20, 20)).astype(np.int16)
    whole = write(tmp_path / "a.nii.gz", noise).read_bytes()
    (tmp_path / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SigakError, match=r"cut\.nii\.gz is damaged or cut short"):
        volumes.read(tmp_path / "cut.nii.gz")
    (tmp_path / "text.nii").write_text("no volume")
    with pytest.raises(SigakError, match=r"text\.nii is no NIfTI file, or damaged"):
        volumes.describe(tmp_path / "text.nii")
    (tmp_path / "text.npz").write_text("no volume")
    with pytest.raises(SigakError, match=r"text\.npz is damaged"):
        volumes.read(tmp_path / "text.npz")
    np.savez(tmp_path / "two.npz", a=noise, b=noise)
    with pytest.raises(SigakError, match="it holds 2 arrays, one is expected"):
        volumes.read(tmp_path / "two.npz")
    with pytest.raises(SigakError, match=r"but .*lost\.nii does not exist"):
        volumes.read(tmp_path / "lost.nii")
    with pytest.raises(SigakError, match="is a folder"):
        volumes.read(tmp_path)


def test_without_nibabel_it_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "a.nii.gz", np.zeros((2, 2, 2), np.int16))
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(SigakError, match=r"pip install 'sigak\[volumes\]'"):
        volumes.read(path)


# ------------------------------------------------------------------ intensity


def test_scaling_by_hand():
    """Of the values 0 .. 1000 the percentiles .5 and 99.5 are 5 and 995."""
    values = np.arange(1001, dtype=np.int32).reshape(7, 11, 13)
    found = volumes.scaled(values)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.clip((values - 5) / 990, 0, 1), atol=1e-6)


def test_scaling_does_not_depend_on_units():
    values = np.random.default_rng(0).normal(size=(9, 10, 11))
    one, other = volumes.scaled(values), volumes.scaled(-1000 + 370.5 * values)
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_few_bright_voxels_keep_their_range():
    values = np.zeros((20, 20, 20))
    values[3, 4, 5] = 7
    found = volumes.scaled(values)
    assert found[3, 4, 5] == 1
    assert found.sum() == 1


def test_constant_volumes_are_black():
    assert not volumes.scaled(np.full((3, 4, 5), 1e6)).any()


def test_voxels_without_a_number_do_not_count():
    values = np.arange(1001.0).reshape(7, 11, 13)
    spoilt = np.concatenate([values, np.full((1, 11, 13), np.nan), np.full((1, 11, 13), np.inf),
                             np.full((1, 11, 13), 1e300)])  # fmt: skip
    found = volumes.scaled(spoilt)
    assert np.array_equal(found[:7], volumes.scaled(values))
    assert not found[7:].any()
    with pytest.raises(SigakError, match="scan: none of its 8 voxels is a finite number"):
        volumes.scaled(np.full((2, 2, 2), np.nan), "scan")


def test_load_keeps_the_slices():
    values = np.random.default_rng(0).normal(size=(1, 5, 6))
    voxels, matrix, size = volumes.load(values, READY)
    assert voxels.shape == (1, 5, 6, 1)
    assert voxels.dtype == np.float32
    assert np.array_equal(matrix, np.eye(3))
    assert size == (5, 6)


def test_rules_of_other_versions_and_steps_are_refused():
    from dataclasses import replace

    with pytest.raises(SigakError, match="scaled by percentile, received 'zscore'"):
        volumes.load(np.zeros((2, 2, 2)), replace(READY, intensity="zscore"))
    with pytest.raises(SigakError, match="--prepare is for pictures"):
        volumes.load(np.zeros((2, 2, 2)), replace(READY, steps=("mirror",)))


# ------------------------------------------------------------------ masks


def test_masks_are_whole_numbers(tmp_path):
    labels = np.random.default_rng(0).integers(0, 256, (4, 5, 6))
    for values in (labels.astype(np.float64), labels.astype(np.int32), labels.astype(np.uint8)):
        np.save(tmp_path / "a.npy", values)
        assert np.array_equal(volumes.read_labels(tmp_path / "a.npy"), labels)


@pytest.mark.parametrize(
    ("value", "said"), [(2035, "2035"), (-1, "-1"), (1.5, "1.5"), (np.nan, "nan")]
)
def test_other_masks_are_refused(tmp_path, value, said):
    labels = np.zeros((2, 3, 4))
    labels[1, 1, 1] = value
    np.save(tmp_path / "a.npy", labels)
    with pytest.raises(SigakError, match=rf"a\.npy holds the value {said}; .* from 0 to 254"):
        volumes.read_labels(tmp_path / "a.npy")


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_mask_lies_where_its_volume_lies(tmp_path, kind):
    """Turned and slanted, with the codes and units that the file had."""
    turn = AFFINE.copy()
    turn[:3, :3] = AFFINE[:3, :3] @ [[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]]
    made = kind(np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32), turn)
    made.set_qform(turn, 1)
    made.set_sform(turn, 3)
    made.header.set_xyzt_units("mm", "sec")
    made.header["cal_max"] = 80
    made.to_filename(tmp_path / "a.nii.gz")
    labels = np.random.default_rng(1).integers(0, 4, (3, 4, 5)).astype(np.uint8)
    volumes.save(tmp_path / "out/m.nii.gz", labels, tmp_path / "a.nii.gz")
    mask = nibabel.load(tmp_path / "out/m.nii.gz")
    assert type(mask) is kind
    assert mask.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(mask.dataobj), labels.T)
    original = nibabel.load(tmp_path / "a.nii.gz")
    np.testing.assert_allclose(mask.affine, original.affine)
    for name in ("qform_code", "sform_code", "xyzt_units"):
        assert mask.header[name] == original.header[name], name
    assert mask.header["cal_max"] == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["m.nii.gz"]


def test_masks_of_arrays(tmp_path):
    labels = np.random.default_rng(1).integers(0, 4, (3, 4, 5)).astype(np.uint8)
    volumes.save(tmp_path / "m.npy", labels)
    assert np.array_equal(np.load(tmp_path / "m.npy"), labels)
    volumes.save(tmp_path / "m.nii", labels)
    assert np.array_equal(volumes.read_labels(tmp_path / "m.nii"), labels)


def test_endings():
    assert [volumes.is_volume(n) for n in ("a.nii.gz", "A.NII", "a.npy", "a.gz", "a.png")] == [
        True, True, True, False, False,
    ]  # fmt: skip
    assert [volumes.stem(n) for n in ("b/a.nii.gz", "a.v2.npz", "x")] == ["b/a", "a.v2", "x"]
