"""Reading and writing scans and label maps, the awkward ones too."""

from __future__ import annotations

import bz2
import gzip
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK

from HybridMIMLib.data.grid import Grid
from HybridMIMLib.data.itk_headers import check_voxels_are_there, read_text_header
from HybridMIMLib.data.scans import (
    files_of,
    find_scans,
    read_items,
    read_label_map,
    read_scan,
    scan_name,
    write_image,
    write_label_map,
    write_nifti,
)
from HybridMIMLib.errors import DataError, DiskError, HybridMIMError, LabelError, ScanError

SHAPE = (9, 10, 11)
OBLIQUE = np.array([[0.8 * 0.9, -0.6 * 1.1, 0, -40], [0.6 * 0.9, 0.8 * 1.1, 0, 12.5], [0, 0, 3, 7], [0, 0, 0, 1]])
LEFT_HANDED = OBLIQUE @ np.diag([-1, 1, 1, 1])
PERMUTED = np.array([[0, 0, -2.5, 60], [-0.7, 0, 0, 30], [0, 0.9, 0, -8], [0, 0, 0, 1]])
SHEARED = OBLIQUE @ np.array([[1, 0, 0.4, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])


def voxels(dtype: str = "int16", shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 100, shape).astype(dtype)


def save_nifti(path: Path, array: np.ndarray, affine: np.ndarray = OBLIQUE) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def save_itk(path: Path, array: np.ndarray, affine: np.ndarray = OBLIQUE, *, vector: bool = False) -> Path:
    """(D, H, W) or, as a vector image, (D, H, W, C)."""
    axes = (2, 1, 0, 3) if vector else tuple(reversed(range(array.ndim)))
    image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.transpose(axes)), isVector=vector)
    if image.GetDimension() == 3:
        lps = np.diag([-1, -1, 1, 1]) @ affine
        spacing = np.linalg.norm(lps[:3, :3], axis=0)
        image.SetSpacing(spacing.tolist())
        image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
        image.SetOrigin(lps[:3, 3].tolist())
    SimpleITK.WriteImage(image, str(path), True)
    return path


def refused(path: Path, *words: str, error: type[HybridMIMError] = ScanError) -> None:
    """Reading fails with one line that names the file and has all the words."""
    read = read_label_map if error is LabelError else read_scan
    with pytest.raises(error) as caught:
        read(path)
    text = str(caught.value)
    assert path.name in text
    assert "\n" not in text
    assert caught.value.cure
    for word in words:
        assert word in text


# --- names and finding --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("a.nii.gz", "a"),
        ("a.b.nii", "a.b"),
        ("c.NRRD", "c"),
        ("c.seg.nrrd", "c"),
        ("Játra 2.mha", "Játra 2"),
        ("x.txt", "x.txt"),
    ],
)
def test_scan_name(file: str, name: str) -> None:
    assert scan_name(Path("folder") / file) == name


def test_find_scans_sorts_naturally_and_passes_over_the_rest(unicode_folder: Path) -> None:
    wanted = ["a 2.nii.gz", "a 10.NII.GZ", "B2.mhd", "b/1.nrrd", "b/c/x.mha", "数.nhdr"]
    others = [
        ".hidden.nii",
        "._a 2.nii.gz",
        ".tmp-12-a.nii.gz",
        "a.tmp.nii.gz",
        "a.txt",
        ".git/a.nii",
        "a.raw",
    ]
    for name in wanted + others:
        path = unicode_folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    found = [path.relative_to(unicode_folder).as_posix() for path in find_scans(unicode_folder)]
    assert found == wanted


def test_find_scans_follows_links_once(tmp_path: Path) -> None:
    real = tmp_path / "real"
    (real / "sub").mkdir(parents=True)
    (real / "sub" / "a.nii").write_bytes(b"")
    top = tmp_path / "top"
    top.mkdir()
    try:
        (top / "link").symlink_to(real, target_is_directory=True)
        (real / "sub" / "loop").symlink_to(real, target_is_directory=True)
    except OSError:
        pytest.skip("this system does not allow links")
    assert find_scans(top) == [top / "link" / "sub" / "a.nii"]


def test_find_scans_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        find_scans(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no scan found in .*: formats are \.nii, \.nii\.gz"):
        find_scans(tmp_path)


def test_a_header_has_its_data_with_it(tmp_path: Path) -> None:
    for name, data in (("a.mhd", "a.raw"), ("b.nhdr", "b.raw")):
        path = save_itk(tmp_path / name, voxels())
        packed = next(file for file in tmp_path.glob(f"{path.stem}.*raw*"))
        assert files_of(path) == (path, packed) and data.partition(".")[0] == packed.name.partition(".")[0]
    assert files_of(tmp_path / "none.mhd") == (tmp_path / "none.mhd",)
    (tmp_path / "c.mhd").write_text("ElementDataFile = LOCAL\n")
    (tmp_path / "d.mhd").write_text("ElementDataFile = missing.raw\n")
    (tmp_path / "e.nrrd").write_text("data file: a.raw\n")
    for name in ("c.mhd", "d.mhd", "e.nrrd"):
        assert files_of(tmp_path / name) == (tmp_path / name,)


def test_a_detached_file_that_is_missing_is_no_scan(tmp_path: Path) -> None:
    path = save_itk(tmp_path / "a.mhd", voxels())
    files_of(path)[1].unlink()
    refused(path)


# --- geometry -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("affine", [OBLIQUE, LEFT_HANDED, PERMUTED], ids=["oblique", "left-handed", "permuted"])
def test_formats_agree(unicode_folder: Path, affine: np.ndarray) -> None:
    array = voxels()
    for suffix in (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd"):
        save = save_nifti if ".nii" in suffix else save_itk
        scan = read_scan(save(unicode_folder / f"scan{suffix}", array, affine))
        assert np.array_equal(scan.array[0], array)
        assert scan.array.dtype == np.int16
        assert scan.array.flags["C_CONTIGUOUS"]
        assert np.allclose(scan.grid.affine, affine, atol=1e-5)
        assert scan.warnings == ()


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_shear_is_kept_and_warned_of(tmp_path: Path, suffix: str) -> None:
    save = save_nifti if ".nii" in suffix else save_itk
    scan = read_scan(save(tmp_path / f"scan{suffix}", voxels(), SHEARED))
    assert np.allclose(scan.grid.affine, SHEARED, atol=1e-5)
    assert any("right angles" in text for text in scan.warnings)


def test_second_version_of_nifti(tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti2Image(voxels(), OBLIQUE), tmp_path / "a.nii.gz")
    assert np.allclose(read_scan(tmp_path / "a.nii.gz").grid.affine, OBLIQUE)


def test_big_endian_and_misnamed_compression(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(voxels(), OBLIQUE).to_bytes()
    swapped = nibabel.Nifti1Image(voxels(), OBLIQUE, nibabel.Nifti1Header(endianness=">")).to_bytes()
    (tmp_path / "plain.nii.gz").write_bytes(image)
    (tmp_path / "packed.nii").write_bytes(gzip.compress(swapped))
    for name in ("plain.nii.gz", "packed.nii"):
        scan = read_scan(tmp_path / name)
        assert np.array_equal(scan.array[0], voxels())
        assert scan.array.dtype.isnative


def test_scaled_integers_become_float32(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(voxels(), OBLIQUE)
    image.header.set_slope_inter(0.5, -3)
    nibabel.save(image, tmp_path / "a.nii.gz")
    scan = read_scan(tmp_path / "a.nii.gz")
    assert scan.array.dtype == np.float32
    assert np.isclose(scan.array.min(), voxels().min() * 0.5 - 3, atol=0.51)


# --- channels and 4D ----------------------------------------------------------------------------------------


def test_vector_images_have_channels(tmp_path: Path) -> None:
    array = voxels("float32", (*SHAPE, 2))
    for scan in (
        read_scan(save_itk(tmp_path / "a.nrrd", array, vector=True)),
        read_scan(save_itk(tmp_path / "a.mha", array, vector=True)),
        read_scan(save_nifti(tmp_path / "a.nii.gz", array[..., np.newaxis, :])),
    ):
        assert scan.array.shape == (2, *SHAPE)
        assert np.array_equal(scan.array, np.moveaxis(array, -1, 0))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_4d_of_one_volume_is_3d(tmp_path: Path, suffix: str) -> None:
    save = save_nifti if ".nii" in suffix else save_itk
    array = voxels()
    assert np.array_equal(read_scan(save(tmp_path / f"a{suffix}", array[..., np.newaxis])).array[0], array)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_4d_is_refused(tmp_path: Path, suffix: str) -> None:
    save = save_nifti if ".nii" in suffix else save_itk
    refused(save(tmp_path / f"a{suffix}", voxels(shape=(*SHAPE, 3))), "3 volumes (4D)", "split it into 3D")


def test_sequence_of_slicer_is_4d(tmp_path: Path) -> None:
    path = save_itk(tmp_path / "a.nrrd", voxels("int16", (*SHAPE, 5)), vector=True)
    path.write_bytes(path.read_bytes().replace(b"kinds: vector", b"kinds: list"))
    refused(path, "5 volumes (4D)")


def save_in_time(path: Path, array: np.ndarray, step: float, unit: str = "unknown") -> Path:
    """(D, H, W, T), or (D, H, W, T, C) as NIfTI, with a step in time."""
    if ".nii" in path.name:
        image = nibabel.Nifti1Image(array, OBLIQUE)
        image.header.set_xyzt_units("mm", unit)
        image.header["pixdim"][4] = step
        nibabel.save(image, path)
    else:
        image = SimpleITK.GetImageFromArray(np.ascontiguousarray(array.T), isVector=False)
        image.SetSpacing((1.0, 1.0, 1.0, step))
        SimpleITK.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_volumes_of_4d_are_read_one_after_the_other_for_a_model_of_one_channel(tmp_path: Path, suffix: str) -> None:
    array = voxels(shape=(*SHAPE, 3))
    items = read_items(save_in_time(tmp_path / f"a{suffix}", array, 2.5, "sec"), channels=1)
    assert items.is_4d and len(items) == 3 and items.grid.shape == SHAPE
    assert items.step == (2.5, "sec" if ".nii" in suffix else "unknown")
    for number, one in enumerate(items):
        assert one.shape == (1, *SHAPE) and np.array_equal(one[0], array[..., number])


def test_as_many_volumes_as_the_model_has_channels_are_its_channels(tmp_path: Path) -> None:
    array = voxels(shape=(*SHAPE, 3))
    items = read_items(save_nifti(tmp_path / "a.nii.gz", array), channels=3)
    assert not items.is_4d and [one.shape for one in items] == [(3, *SHAPE)]
    assert np.array_equal(next(iter(items)), np.moveaxis(array, -1, 0))
    with pytest.raises(ScanError, match=r"3 volumes \(4D\) of 1 channel.*takes 2"):
        read_items(tmp_path / "a.nii.gz", channels=2)


def test_volumes_of_several_channels_keep_them_together(tmp_path: Path) -> None:
    array = voxels(shape=(*SHAPE, 4, 2))
    path = save_in_time(tmp_path / "a.nii", array, 1.0)
    items = read_items(path, channels=2)
    assert items.is_4d and len(items) == 4
    for number, one in enumerate(items):
        assert np.array_equal(one, np.moveaxis(array[..., number, :], -1, 0))
    refused(path, "4 volumes (4D)")
    for channels in (1, 4):
        with pytest.raises(ScanError, match=r"4 volumes \(4D\) of 2 channel"):
            read_items(path, channels)


def test_a_volume_of_4d_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    array = voxels("float32", (*SHAPE, 3))
    array[..., 1] = 5
    with pytest.raises(ScanError, match="volume 2 of 3: every voxel is 5"):
        read_items(save_nifti(tmp_path / "a.nii.gz", array), channels=1)
    array[0, 0, 0, 2] = np.nan
    array[0, 0, 0, 1] = 6
    with pytest.raises(ScanError, match="volume 3 of 3: 1 of 990 voxels are NaN"):
        read_items(save_nifti(tmp_path / "a.nii.gz", array), channels=1)


def test_a_sequence_of_slicer_is_read_volume_by_volume(tmp_path: Path) -> None:
    array = voxels("int16", (*SHAPE, 3))
    path = save_itk(tmp_path / "a.nrrd", array, vector=True)
    assert not read_items(path, channels=3).is_4d
    path.write_bytes(path.read_bytes().replace(b"kinds: vector", b"kinds: list"))
    items = read_items(path, channels=1)
    assert items.is_4d and [np.array_equal(one[0], array[..., n]) for n, one in enumerate(items)] == [True] * 3


def test_what_is_3d_is_read_as_for_training(tmp_path: Path) -> None:
    path = save_itk(tmp_path / "a.nrrd", voxels())
    scan, items = read_scan(path), read_items(path, channels=1)
    assert not items.is_4d and len(items) == 1 and items.grid.same_as(scan.grid, 0)
    assert np.array_equal(next(iter(items)), scan.array)


@pytest.mark.parametrize("shape", [(1, 9, 8), (9, 1, 8), (9, 8, 1), (9, 8)])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_a_single_slice_is_read_to_be_segmented(tmp_path: Path, shape: tuple[int, ...], suffix: str) -> None:
    array = voxels(shape=shape)
    items = read_items((save_nifti if ".nii" in suffix else save_itk)(tmp_path / f"a{suffix}", array), channels=1)
    whole = array.reshape(shape if len(shape) == 3 else (*shape, 1))
    assert not items.is_4d and items.grid.shape == whole.shape and np.array_equal(next(iter(items))[0], whole)
    assert any("single slice" in text for text in items.warnings)
    if len(shape) == 3:
        assert np.allclose(items.grid.affine, OBLIQUE, atol=1e-5)
    elif suffix != ".nii.gz":
        assert items.grid.spacing[2] == 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_slice_without_thickness_is_1_mm_thick_and_stands_on_its_plane(tmp_path: Path, axis: int) -> None:
    affine = OBLIQUE.copy()
    affine[:3, axis] = 0
    image = nibabel.Nifti1Image(voxels(shape=tuple(1 if n == axis else 9 for n in range(3))), None)
    image.header["sform_code"] = 1
    image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = affine[:3]
    image.header["pixdim"][1:4] = 1
    path = tmp_path / "a.nii"
    content = bytearray(image.header.binaryblock + bytes(4) + image.get_fdata().astype("<i2").tobytes("F"))
    content[70:74] = np.array([4, 16], "<i2").tobytes()
    content[108:112], content[344:348] = np.float32(352).tobytes(), b"n+1\0"
    path.write_bytes(content)
    linear = read_items(path, channels=1).grid.affine[:3, :3]
    others = [n for n in range(3) if n != axis]
    assert np.allclose(linear[:, others], OBLIQUE[:3, others], atol=1e-5)
    assert np.isclose(np.linalg.norm(linear[:, axis]), 1) and np.allclose(
        linear[:, axis] @ linear[:, others], 0, atol=1e-6
    )


def test_a_line_of_voxels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="9 x 1 x 1"):
        read_items(save_nifti(tmp_path / "a.nii", voxels(shape=(9, 1, 1))), channels=1)


# --- scans that cannot be used ------------------------------------------------------------------------------


def test_missing_empty_and_foreign_files(unicode_folder: Path) -> None:
    refused(unicode_folder / "none.nii.gz", "no such file")
    (unicode_folder / "a.nrrd").write_bytes(b"")
    refused(unicode_folder / "a.nrrd", "is empty")
    (unicode_folder / "a.dcm").write_bytes(b"x")
    refused(unicode_folder / "a.dcm", "the file is no DICOM")
    (unicode_folder / "a.txt").write_bytes(b"x")
    refused(unicode_folder / "a.txt", "not a format that is read", ".nrrd")
    refused(unicode_folder / "none.txt", "no such file")
    (unicode_folder / "folder.nii").mkdir()
    refused(unicode_folder / "folder.nii", "no such file")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha", ".nhdr"])
def test_noise_and_pointers(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    refused(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n")
    refused(path, "git-LFS pointer", "git lfs pull")


@pytest.mark.parametrize("keep", [0.02, 0.5, 0.99])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_truncated(tmp_path: Path, suffix: str, keep: float) -> None:
    save = save_nifti if ".nii" in suffix else save_itk
    path = save(tmp_path / f"a{suffix}", voxels(shape=(30, 31, 32)))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    refused(path)


def test_damaged_gzip(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii.gz", voxels(shape=(30, 31, 32)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    refused(path, "truncated or damaged")


def test_colours_and_complex_numbers(tmp_path: Path) -> None:
    refused(save_itk(tmp_path / "a.nrrd", voxels("uint8", (*SHAPE, 3)), vector=True), "colour")
    refused(save_itk(tmp_path / "a.mha", voxels("uint8", (*SHAPE, 4)), vector=True), "colour")
    refused(save_nifti(tmp_path / "c.nii.gz", voxels("complex64")), "complex", "magnitude")
    refused(save_itk(tmp_path / "c.nrrd", voxels("complex64")), "complex")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path: Path, value: float) -> None:
    array = voxels("float32")
    array[1, 2, 3] = value
    refused(save_nifti(tmp_path / "a.nii.gz", array), "1 of 990 voxels are NaN or infinite")


def test_beyond_float32(tmp_path: Path) -> None:
    array = voxels("float64")
    array[1, 2, 3] = 1e300
    refused(save_nifti(tmp_path / "a.nii.gz", array), "infinite")


def test_constant(tmp_path: Path) -> None:
    refused(save_nifti(tmp_path / "a.nii.gz", np.full(SHAPE, 7, np.int16)), "every voxel is 7")


@pytest.mark.parametrize("shape", [(1, 9, 9), (9, 9, 1), (9, 9)])
def test_single_slice(tmp_path: Path, shape: tuple[int, ...]) -> None:
    refused(save_nifti(tmp_path / "a.nii.gz", voxels(shape=shape)), "single slice")
    refused(save_itk(tmp_path / "a.mha", voxels(shape=shape)), "single slice")


def test_singular_affine(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(voxels(), None)
    image.header["sform_code"] = 1
    image.header["srow_x"] = image.header["srow_y"] = image.header["srow_z"] = [1, 0, 0, 0]
    (tmp_path / "a.nii").write_bytes(image.header.binaryblock + bytes(4) + voxels().tobytes("F"))
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[108:112] = np.float32(352).tobytes()
    content[344:348] = b"n+1\0"
    (tmp_path / "a.nii").write_bytes(content)
    refused(tmp_path / "a.nii", "singular")


# --- scans that are odd -------------------------------------------------------------------------------------


def test_warnings(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(voxels(), OBLIQUE)
    image.set_sform(OBLIQUE, 1)
    image.set_qform(OBLIQUE @ np.diag([1, 1, -1, 1]), 1)
    nibabel.save(image, tmp_path / "contradicting.nii")
    assert "sform and qform contradict" in read_scan(tmp_path / "contradicting.nii").warnings[0]
    nibabel.save(nibabel.Nifti1Image(voxels(), None), tmp_path / "nowhere.nii")
    assert "stores no orientation" in read_scan(tmp_path / "nowhere.nii").warnings[0]
    image = nibabel.Nifti1Image(voxels(), OBLIQUE)
    image.header.set_xyzt_units("meter")
    nibabel.save(image, tmp_path / "units.nii")
    assert "unit is meter" in read_scan(tmp_path / "units.nii").warnings[0]
    image = nibabel.Nifti1Image(voxels(), OBLIQUE)
    image.header["descrip"] = b"TE=2.5;Time=1"
    nibabel.save(image, tmp_path / "mr.nii")
    assert (read_scan(tmp_path / "mr.nii").modality, read_scan(tmp_path / "units.nii").modality) == ("MR", "")
    thin = read_scan(save_nifti(tmp_path / "thin.nii", voxels(shape=(9, 9, 3))))
    assert "only 3 voxels" in thin.warnings[0]


UGLY_REFUSED = {
    "git_lfs_pointer_pretending_nifti.nii.gz": "git-LFS pointer",
    "mpld_asl.nii.gz": "25 volumes (4D)",
    "pcasl.nii.gz": "10 volumes (4D)",
    "rgb24.nii.gz": "colour",
    "sct_4d_singleslice_venc.nii.gz": "3 volumes (4D)",
    "sct_fmri_4d_oblique_16.8mm.nii.gz": "30 volumes (4D)",
    "truncated_gzip_spleen_8.nii.gz": "truncated or damaged",
    "zero_bytes.nii.gz": "is empty",
}
UGLY_READ = {
    "FLAIR.nrrd": "RAS",
    "bad_sform_scales_image.nii.gz": "RAS",
    "ct_head_uint8_pitched.nii.gz": "RAS",
    "image_without_label_hippocampus_118.nii.gz": "RAS",
    "sct_t2_AIL_axes.nii.gz": "PSR",
    "sct_t2s_oblique_7.5mm.nii.gz": "LAS",
    "shear.nii.gz": "RAS",
    "t2_oblique_5.5mm.nii.gz": "LAS",
    "two_slices_37.5mm.nii.gz": "LAS",
}
UGLY_LABELS = {
    "bad_sform_scales_label.nii.gz": "bad_sform_scales_image.nii.gz",
    "sct_t2_AIL_axes_label_cord.nii.gz": "sct_t2_AIL_axes.nii.gz",
    "sct_t2s_oblique_7.5mm_label_gm.nii.gz": "sct_t2s_oblique_7.5mm.nii.gz",
}
UGLY_WARNINGS = {"shear.nii.gz": "right angles", "two_slices_37.5mm.nii.gz": "only 2 voxels"}


@pytest.fixture
def ugly(shared_data: Path) -> Path:
    folder = shared_data / "ugly" / "nifti"
    if not folder.is_dir():
        pytest.skip(f"the awkward scans are not at {folder}")
    return folder


def test_every_ugly_file_has_an_outcome(ugly: Path) -> None:
    assert {path.name for path in find_scans(ugly)} == {*UGLY_REFUSED, *UGLY_READ, *UGLY_LABELS}


@pytest.mark.parametrize(("name", "words"), UGLY_REFUSED.items())
def test_ugly_refused(ugly: Path, name: str, words: str) -> None:
    refused(ugly / name, words)


@pytest.mark.parametrize(("name", "codes"), UGLY_READ.items())
def test_ugly_read(ugly: Path, name: str, codes: str) -> None:
    scan = read_scan(ugly / name)
    assert scan.grid.axis_codes == codes
    words = UGLY_WARNINGS.get(name)
    assert len(scan.warnings) == (words is not None)
    assert words is None or words in scan.warnings[0]


def test_ugly_shear_is_the_one_of_the_file(ugly: Path) -> None:
    affine = read_scan(ugly / "shear.nii.gz").grid.affine
    assert np.array_equal(affine, nibabel.load(ugly / "shear.nii.gz").affine)


@pytest.mark.parametrize(("name", "image"), UGLY_LABELS.items())
def test_ugly_labels(ugly: Path, name: str, image: str) -> None:
    scan = read_scan(ugly / image)
    if name.startswith("bad_sform"):
        assert "pixdim says" in read_label_map(ugly / name).warnings[0]
        with pytest.raises(LabelError, match="does not lie on the grid of"):
            read_label_map(ugly / name, scan.grid)
    else:
        assert read_label_map(ugly / name, scan.grid).array.max() == 1


# --- label maps ---------------------------------------------------------------------------------------------


def labels(top: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, top + 1, SHAPE)


@pytest.mark.parametrize("affine", [OBLIQUE, LEFT_HANDED, PERMUTED], ids=["oblique", "left-handed", "permuted"])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_label_maps_return_as_written(unicode_folder: Path, suffix: str, affine: np.ndarray) -> None:
    grid, path = Grid(SHAPE, affine), unicode_folder / f"řez{suffix}"
    write_label_map(path, labels(), grid)
    label_map = read_label_map(path, grid, highest=3)
    assert label_map.array.dtype == np.uint8
    assert np.array_equal(label_map.array, labels())
    assert label_map.warnings == ()
    image = SimpleITK.ReadImage(str(path))
    first = np.diag([-1, -1, 1]) @ np.array(image.TransformIndexToPhysicalPoint((1, 2, 3)))
    assert np.allclose(first, (affine @ [1, 2, 3, 1])[:3], atol=1e-4)


def test_written_nifti_has_both_forms_and_keeps_shear(tmp_path: Path) -> None:
    write_label_map(tmp_path / "a.nii.gz", labels(), Grid(SHAPE, SHEARED))
    image = nibabel.load(tmp_path / "a.nii.gz")
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    assert np.allclose(image.get_sform(), SHEARED, atol=1e-5)
    assert image.header.get_xyzt_units()[0] == "mm"
    write_label_map(tmp_path / "b.nii.gz", labels(), Grid(SHAPE, OBLIQUE))
    assert np.allclose(nibabel.load(tmp_path / "b.nii.gz").get_qform(), OBLIQUE, atol=1e-4)


def test_labels_above_255(tmp_path: Path) -> None:
    write_label_map(tmp_path / "a.nrrd", labels(300), Grid(SHAPE, OBLIQUE))
    label_map = read_label_map(tmp_path / "a.nrrd")
    assert label_map.array.dtype == np.uint16
    assert np.array_equal(label_map.array, labels(300))


def test_float_labels_are_rounded(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii.gz", (labels() + 3e-5).astype(np.float32))
    assert np.array_equal(read_label_map(path).array, labels())


def test_empty_label_map_is_one(tmp_path: Path) -> None:
    assert read_label_map(save_nifti(tmp_path / "a.nii.gz", np.zeros(SHAPE, np.uint8))).array.max() == 0


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.where(labels() == 2, 1.5, labels()), "the value 1.5 is no label"),
        (np.where(labels() == 2, np.nan, labels()), "the value nan is no label"),
        (np.where(labels() == 2, np.inf, labels()), "the value inf is no label"),
        ((labels() - 1).astype(np.int16), "negative label -1"),
        (labels() - 1.0, "negative label -1"),
        (labels(5).astype(np.int32) * 30000, "has the label 150000"),
    ],
)
def test_values_that_are_no_labels(tmp_path: Path, array: np.ndarray, words: str) -> None:
    refused(save_nifti(tmp_path / "a.nii.gz", array), words, error=LabelError)


def test_label_without_class(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "a.nii.gz", labels(3).astype(np.uint8))
    with pytest.raises(LabelError, match="has the label 3, above the highest class, 2"):
        read_label_map(path, highest=2)


def test_other_grid_names_both_files(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "label.nii.gz", labels().astype(np.uint8), LEFT_HANDED)
    with pytest.raises(LabelError) as caught:
        read_label_map(path, Grid((9, 10, 12), OBLIQUE), scan_path=Path("image.nii.gz"))
    for word in (
        "label.nii.gz",
        "image.nii.gz",
        "9 x 10 x 11",
        "9 x 10 x 12",
        "0.9 x 1.1 x 3 mm",
        "Resample",
    ):
        assert word in str(caught.value)


def test_label_map_that_cannot_be_read_is_a_label_error(tmp_path: Path) -> None:
    refused(tmp_path / "none.nii.gz", "no such file", error=LabelError)
    refused(save_nifti(tmp_path / "a.nii.gz", voxels(shape=(*SHAPE, 2))), "2 layers", error=LabelError)


def test_segmentations_of_slicer(shared_data: Path) -> None:
    folder = shared_data / "small_labelled_ct" / "slicerio_ctchest_nrrd"
    if not folder.is_dir():
        pytest.skip(f"Slicer's segmentations are not at {folder}")
    assert read_label_map(folder / "Segmentation.seg.nrrd").array.max() >= 1
    refused(folder / "SegmentationOverlapping.seg.nrrd", "layers", "overlap", error=LabelError)


# --- writing ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="no limits of file sizes there")
@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".nii.gz"])
@pytest.mark.parametrize("limit", [100, 2000, 5000])
def test_a_file_that_was_cut_short_by_a_full_disk_is_not_kept(tmp_path: Path, suffix: str, limit: int) -> None:
    import resource

    noise = np.random.default_rng(0).integers(0, 255, (20, 20, 20)).astype(np.uint8)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        with pytest.raises(DiskError, match="disk is full"):
            write_label_map(tmp_path / f"labels{suffix}", noise, Grid(noise.shape, OBLIQUE))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha"])
def test_failed_write_leaves_what_was_there(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid(SHAPE, OBLIQUE)
    write_label_map(tmp_path / name, labels(), grid)
    before = (tmp_path / name).read_bytes()

    def half(target: object, path: object, *_: object) -> None:
        Path(str(path)).write_bytes(before[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nibabel, "save", half)
    monkeypatch.setattr(SimpleITK, "WriteImage", half)
    with pytest.raises(DiskError, match="disk is full"):
        write_label_map(tmp_path / name, labels(), grid)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == before


def test_label_maps_are_not_written_in_two_files(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"\.nii\.gz"):
        write_label_map(tmp_path / "a.mhd", labels(), Grid(SHAPE, OBLIQUE))


@pytest.mark.parametrize("array", [labels() - 1, labels() * 0.5, labels()[1:], labels() + 70000])
def test_wrong_labels_are_not_written(tmp_path: Path, array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="labels"):
        write_label_map(tmp_path / "a.nii", array, Grid(SHAPE, OBLIQUE))
    assert not list(tmp_path.iterdir())


def test_same_labels_same_bytes(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        write_label_map(tmp_path / name, labels(), Grid(SHAPE, OBLIQUE))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_4d_returns_as_written_with_its_step(tmp_path: Path) -> None:
    labels = voxels("uint8", (4, *SHAPE))
    grid = Grid(SHAPE, SHEARED)
    write_label_map(tmp_path / "a.nii.gz", labels, grid, (0.75, "msec"))
    image = nibabel.load(tmp_path / "a.nii.gz")
    assert np.array_equal(np.asanyarray(image.dataobj), np.moveaxis(labels, 0, -1))
    assert image.header.get_zooms()[3] == 0.75 and image.header.get_xyzt_units() == ("mm", "msec")
    items = read_items(tmp_path / "a.nii.gz", channels=1)
    assert items.grid.same_as(grid, 1e-3) and items.step == (0.75, "msec")
    for path in (tmp_path / "a.nrrd", tmp_path / "b.nii.gz"):
        with pytest.raises(ValueError, match="do not lie on a grid"):
            write_label_map(path, labels if path.suffix == ".nrrd" else labels[:, :-1], grid)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_numbers_return_as_written(tmp_path: Path, suffix: str) -> None:
    numbers = np.random.default_rng(0).random(SHAPE).astype(np.float32)
    write_image(tmp_path / f"a{suffix}", numbers, Grid(SHAPE, SHEARED))
    scan = read_scan(tmp_path / f"a{suffix}")
    assert np.array_equal(scan.array[0], numbers) and np.allclose(scan.grid.affine, SHEARED, atol=1e-5)


def test_images_return_as_written(tmp_path: Path) -> None:
    write_nifti(tmp_path / "a.nii.gz", voxels(), Grid(SHAPE, LEFT_HANDED))
    scan = read_scan(tmp_path / "a.nii.gz")
    assert np.array_equal(scan.array[0], voxels())
    assert scan.grid.same_as(Grid(SHAPE, LEFT_HANDED), 1e-4)


# --- voxels that are not all there, in NRRD and MetaImage ---------------------------------------------------

NRRD = (
    "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 9 10 11\n"
    "space directions: (1,0,0) (0,2,0) (0,0,3)\nkinds: domain domain domain\nendian: little\nencoding: raw\n"
    "space origin: (0,0,0)\n"
)
META = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
    "ElementSpacing = 1 2 3\nDimSize = 9 10 11\nElementType = MET_SHORT\n"
)


def raw(array: np.ndarray | None = None) -> bytes:
    return (voxels() if array is None else array).tobytes("F")


def save_text(path: Path, header: str, data: bytes = b"") -> Path:
    path.write_bytes(header.encode() + data)
    return path


def itk_files(folder: Path, suffix: str, packed: bool) -> tuple[Path, Path]:
    """A header and the file with its voxels; noise, so that compressed ones are long."""
    image = SimpleITK.GetImageFromArray(np.random.default_rng(0).integers(-999, 999, (30, 31, 32)).astype(np.int16))
    SimpleITK.WriteImage(image, str(folder / f"a{suffix}"), packed)
    path = folder / f"a{suffix}"
    return path, next((file for file in folder.iterdir() if file != path), path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
def test_voxels_are_counted_to_the_last(tmp_path: Path, suffix: str, packed: bool) -> None:
    path, data = itk_files(tmp_path, suffix, packed)
    assert read_scan(path).array.shape == (1, 32, 31, 30)
    assert set(files_of(path)) == {path, data}
    content = data.read_bytes()
    for cut in (1, 9, len(content) // 3):
        data.write_bytes(content[:-cut])
        with pytest.raises(ScanError, match="truncated or damaged"):
            read_scan(path)


@pytest.mark.parametrize("where", [0.3, 0.7, 0.999])
@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
def test_compressed_voxels_are_read_to_their_checksum(tmp_path: Path, suffix: str, where: float) -> None:
    path, data = itk_files(tmp_path, suffix, True)
    content = bytearray(data.read_bytes())
    content[int(len(content) * where)] ^= 0xFF
    data.write_bytes(content)
    with pytest.raises(ScanError, match="truncated or damaged"):
        read_scan(path)


def test_a_detached_file_that_is_missing_is_named(tmp_path: Path) -> None:
    path, data = itk_files(tmp_path, ".mhd", False)
    data.unlink()
    refused(path, f"there is no file {data.name}")


def test_a_header_that_does_not_end(tmp_path: Path) -> None:
    refused(save_text(tmp_path / "a.mha", META), "header is truncated or damaged")
    refused(save_text(tmp_path / "a.nrrd", "NRRD0004\ntype: short\n"), "header is truncated or damaged")
    refused(save_text(tmp_path / "b.nrrd", META), "header is truncated or damaged, or of another format")


def test_many_gzip_members_text_and_skipped_bytes_are_counted(tmp_path: Path) -> None:
    packed = gzip.compress(raw()[:500]) + gzip.compress(raw()[500:])
    header = NRRD.replace("encoding: raw", "encoding: gzip")
    assert check_bytes(save_text(tmp_path / "members.nrrd", header + "\n", packed))
    assert not check_bytes(save_text(tmp_path / "short.nrrd", header + "\n", gzip.compress(raw()[:-2])))
    (tmp_path / "a.raw").write_bytes(bytes(7) + raw())
    skipping = NRRD + "byte skip: 7\ndata file: a.raw\n"
    assert np.array_equal(read_scan(save_text(tmp_path / "skip.nhdr", skipping)).array[0], voxels())
    refused(save_text(tmp_path / "far.nhdr", skipping.replace("skip: 7", "skip: 8")), "1979 of 1980 bytes of a.raw")
    numbers = " ".join(str(value) for value in voxels().ravel("F")).encode()
    text = NRRD.replace("encoding: raw", "encoding: ascii").replace("endian: little\n", "") + "\n"
    assert np.array_equal(read_scan(save_text(tmp_path / "text.nrrd", text, numbers)).array[0], voxels())


def test_bzip2_is_read_to_its_checksum(tmp_path: Path) -> None:
    header, packed = NRRD.replace("encoding: raw", "encoding: bzip2") + "\n", bytearray(bz2.compress(raw()))
    assert check_bytes(save_text(tmp_path / "a.nrrd", header, bytes(packed)))
    packed[len(packed) // 2] ^= 0xFF
    refused(save_text(tmp_path / "b.nrrd", header, bytes(packed)))
    assert not check_bytes(tmp_path / "b.nrrd")


def check_bytes(path: Path) -> bool:
    try:
        check_voxels_are_there(path, read_text_header(path))
    except ScanError:
        return False
    return True


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("a.mhd", META + "ElementDataFile = LIST\n" + "".join(f"s{k:03}.raw\n" for k in range(11))),
        ("b.mhd", META + "ElementDataFile = s%03d.raw 0 10 1\n"),
        ("c.nhdr", NRRD + "data file: LIST\n" + "".join(f"s{k:03}.raw\n" for k in range(11))),
        ("d.nhdr", NRRD + "data file: s%03d.raw 0 10 1\n"),
    ],
)
def test_slices_in_files_of_their_own_are_refused(tmp_path: Path, name: str, header: str) -> None:
    for k in range(11):
        (tmp_path / f"s{k:03}.raw").write_bytes(voxels()[:, :, k].tobytes("F"))
    refused(save_text(tmp_path / name, header), "its slices lie in files of their own", "Save it as one file")
    assert files_of(tmp_path / name) == (tmp_path / name,)


# --- geometry that is not there, and numbers that are no channels -------------------------------------------


@pytest.mark.parametrize(
    ("name", "header", "words"),
    [
        ("a.nrrd", NRRD, ()),
        ("b.nrrd", NRRD.replace("left-posterior", "right-anterior"), ()),
        ("c.nrrd", NRRD.replace("left-posterior-superior", "scanner-xyz"), ("scanner-xyz, taken for LPS",)),
        (
            "d.nrrd",
            NRRD.replace("space: left-posterior-superior\n", "").replace("space origin: (0,0,0)\n", "")
            .replace("space directions: (1,0,0) (0,2,0) (0,0,3)", "spacings: 1 2 3"),
            ("stores no orientation",),
        ),
        (
            "e.nrrd",
            NRRD.replace("space: left-posterior-superior\n", "").replace("space origin: (0,0,0)\n", "")
            .replace("space directions: (1,0,0) (0,2,0) (0,0,3)\n", ""),
            ("stores no voxel size", "stores no orientation"),
        ),
        ("f.mha", META + "ElementDataFile = LOCAL", ()),
        ("g.mha", META.replace("ElementSpacing", "ElementSize") + "ElementDataFile = LOCAL", ()),
        ("h.mha", META.replace("ElementSpacing = 1 2 3\n", "") + "ElementDataFile = LOCAL", ("no voxel size",)),
        ("i.nrrd", NRRD.replace("(1,0,0)", "(0.001,0,0)"), ("hardly true",)),
        ("j.mha", META.replace("1 2 3", "1 2 51") + "ElementDataFile = LOCAL", ("hardly true",)),
    ],
)  # fmt: skip
def test_geometry_that_is_missing_or_odd_is_told(tmp_path: Path, name: str, header: str, words: tuple[str]) -> None:
    scan = read_scan(save_text(tmp_path / name, header + "\n", raw()))
    assert len(scan.warnings) == len(words)
    assert all(word in text for word, text in zip(words, scan.warnings))


@pytest.mark.parametrize(("spacing", "odd"), [(0.049, True), (0.051, False), (49.9, False), (50.1, True)])
def test_spacing_that_is_hardly_true_is_told(tmp_path: Path, spacing: float, odd: bool) -> None:
    scan = read_scan(save_nifti(tmp_path / "a.nii", voxels(), np.diag([spacing, 1, 1, 1])))
    assert ["is the unit mm?" in text for text in scan.warnings] == [True] * odd


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32"])
@pytest.mark.parametrize("count", [3, 4])
def test_unsigned_triples_are_colours(tmp_path: Path, dtype: str, count: int) -> None:
    for name in ("a.nrrd", "a.mha"):
        refused(save_itk(tmp_path / name, voxels(dtype, (*SHAPE, count)), vector=True), "colour")


def test_vectors_are_no_channels(tmp_path: Path) -> None:
    path = save_itk(tmp_path / "a.nrrd", voxels("float32", (*SHAPE, 3)), vector=True)
    assert "3 numbers a voxel" in read_scan(path).warnings[0]
    path.write_bytes(path.read_bytes().replace(b"kinds: vector", b"kinds: covariant-vector"))
    refused(path, "holds vectors")
    image = nibabel.Nifti1Image(voxels("float32", (*SHAPE, 1, 3)), OBLIQUE)
    for intent in ("vector", "displacement vector"):
        image.header.set_intent(intent)
        nibabel.save(image, tmp_path / "a.nii.gz")
        refused(tmp_path / "a.nii.gz", "holds vectors", "Remove it")


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha", "a.nii.gz"])
def test_more_than_four_numbers_a_voxel_are_volumes(tmp_path: Path, name: str) -> None:
    def save(count: int) -> Path:
        if name.endswith("gz"):
            return save_nifti(tmp_path / name, voxels("int16", (*SHAPE, 1, count)))
        return save_itk(tmp_path / name, voxels("int16", (*SHAPE, count)), vector=True)

    assert read_scan(save(4)).array.shape == (4, *SHAPE)
    refused(save(5), "5 volumes (4D)")
    refused(save(12), "12 volumes (4D)")
