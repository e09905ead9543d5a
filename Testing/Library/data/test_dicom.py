"""DICOM series: told from other files, checked plane by plane, read with their geometry; all others named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.data.data_manager import DATA_ROOT
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from HybridMIMLib.data.dicom_headers import is_dicom
from HybridMIMLib.data.scans import files_of, find_scans, read_scan, scan_name
from HybridMIMLib.errors import DataError, ScanError

TEST_FILES = Path(DATA_ROOT) / "test_files"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
OBLIQUE = (0.8, 0.6, 0.0, -0.6, 0.8, 0.0)
ROWS, COLUMNS, SLICES = 11, 9, 10


def voxels(slices: int = SLICES, seed: int = 0) -> np.ndarray:
    """(slices, rows, columns)."""
    return np.random.default_rng(seed).integers(0, 1000, (slices, ROWS, COLUMNS)).astype(np.int16)


def plane(pixels: np.ndarray, position: Sequence[float], number: int, series: str, **changes: Any) -> Dataset:
    """One CT slice; a change to None takes the tag away."""
    one = Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    content = {
        **{"SOPClassUID": CTImageStorage, "SOPInstanceUID": generate_uid(), "SeriesInstanceUID": series},
        **{"StudyInstanceUID": series, "Modality": "CT", "PatientID": "Ann", "SeriesNumber": 3},
        **{"InstanceNumber": number, "Rows": pixels.shape[0], "Columns": pixels.shape[1], "SamplesPerPixel": 1},
        **{"PhotometricInterpretation": "MONOCHROME2", "BitsAllocated": 16, "BitsStored": 16, "HighBit": 15},
        **{"PixelRepresentation": 1, "ImagePositionPatient": [float(f"{p:.9g}") for p in position]},
        **{"ImageOrientationPatient": list(AXIAL), "PixelSpacing": [0.5, 0.7], "RescaleSlope": 1},
        **{"RescaleIntercept": -1024, **changes},
    }
    for name, value in content.items():
        if value is not None:
            setattr(one, name, value)
    one.PixelData = pixels.astype("<i2").tobytes()
    one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID
    one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
    return one


def series(slices: int = SLICES, gap: float = 2.0, shift: float = 0.0, **changes: Any) -> list[Dataset]:
    """Axial slices, each ``gap`` mm above the one before and ``shift`` mm to the back."""
    uid = generate_uid()
    return [
        plane(pixels, (-10.0, -20.0 + shift * k, 5.0 + gap * k), k + 1, uid, **changes)
        for k, pixels in enumerate(voxels(slices))
    ]


def write(folder: Path, planes: Sequence[Dataset], name: Callable[[int], str] = "{:02}.dcm".format) -> Path:
    """Save the planes; they lie in the folder in another order than in space."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, one in enumerate(planes):
        one.save_as(folder / name(len(planes) - index), enforce_file_format=True)
    return folder


def found(folder: Path) -> Path:
    (path,) = find_scans(folder)
    return path


def refused(folder: Path, *words: str) -> None:
    """There is one scan, it cannot be read, and the reason has all the words."""
    path = found(folder)
    with pytest.raises(ScanError) as caught:
        read_scan(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "\n" not in text and ".." not in text and caught.value.cure
    for word in words:
        assert word in text


# --- a whole series -----------------------------------------------------------------------------------------


def test_a_series_is_one_scan_with_its_values_and_its_place(unicode_folder: Path) -> None:
    write(unicode_folder / "patient" / "ct", series())
    path = found(unicode_folder)
    scan = read_scan(path)
    assert path.name == "10.dcm", "the lowest slice was written last"
    assert [file.name for file in files_of(path)] == [f"{n:02}.dcm" for n in range(10, 0, -1)]
    assert np.array_equal(scan.array[0], voxels().transpose(2, 1, 0) - 1024) and scan.array.dtype == np.int16
    assert scan.array.flags["C_CONTIGUOUS"]
    lps = np.array([[0.7, 0, 0, -10], [0, 0.5, 0, -20], [0, 0, 2, 5], [0, 0, 0, 1]])
    assert np.allclose(scan.grid.affine, np.diag([-1, -1, 1, 1]) @ lps)
    assert (scan.modality, scan.patient, scan.warnings) == ("CT", "Ann", ())
    assert scan_name(path) == "ct"


def test_oblique_slices_lie_where_their_positions_say(tmp_path: Path) -> None:
    uid, normal = generate_uid(), np.array([0.0, 0.0, 1.0])
    planes = [
        plane(pixels, np.array([4.0, 5.0, 6.0]) + 3 * k * normal, k, uid, ImageOrientationPatient=list(OBLIQUE))
        for k, pixels in enumerate(voxels())
    ]
    scan = read_scan(found(write(tmp_path, planes)))
    # The voxel in column 2, row 3, slice 4.
    expected = np.array([4, 5, 6]) + 2 * 0.7 * np.array(OBLIQUE[:3]) + 3 * 0.5 * np.array(OBLIQUE[3:]) + 12 * normal
    assert np.allclose((scan.grid.affine @ [2, 3, 4, 1])[:3], expected * [-1, -1, 1])
    assert scan.array[0, 2, 3, 4] == voxels()[4, 3, 2] - 1024


@pytest.mark.parametrize("name", ["IM{:05}", "{}.ima", "1.2.840.{}", "{:03}.dicom"])
def test_names_say_nothing(tmp_path: Path, name: str) -> None:
    write(tmp_path, series(), name.format)
    assert read_scan(found(tmp_path)).array.shape == (1, COLUMNS, ROWS, SLICES)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_files_without_preamble_and_suffix(tmp_path: Path, syntax: str) -> None:
    for index, one in enumerate(series()):
        del one.file_meta
        path = tmp_path / f"IM{index}"
        pydicom.dcmwrite(path, one, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True)
        assert path.read_bytes()[128:132] != b"DICM" and is_dicom(path)
    assert np.array_equal(read_scan(found(tmp_path)).array[0], voxels().transpose(2, 1, 0) - 1024)


def test_every_slice_is_rescaled_by_its_own_values(tmp_path: Path) -> None:
    planes = series()
    for index, one in enumerate(planes):
        one.RescaleSlope, one.RescaleIntercept = 0.5 + index, index
    scan = read_scan(found(write(tmp_path, planes)))
    slopes = 0.5 + np.arange(SLICES)
    assert scan.array.dtype == np.float32
    assert np.allclose(scan.array[0], (voxels().transpose(2, 1, 0) * slopes) + np.arange(SLICES))


def test_integers_grow_where_16_bit_do_not_hold_them(tmp_path: Path) -> None:
    planes = series()
    planes[6].RescaleSlope = 100
    scan = read_scan(found(write(tmp_path, planes)))
    assert scan.array.dtype == np.int32 and scan.array[0, :, :, 6].max() == int(voxels()[6].max()) * 100 - 1024
    assert np.array_equal(scan.array[0, :, :, 5], voxels()[5].T - 1024)


def test_a_tilted_gantry_gives_a_sheared_affine_and_a_warning(tmp_path: Path) -> None:
    scan = read_scan(found(write(tmp_path, series(shift=0.7))))
    assert np.allclose(scan.grid.affine[:3, 2], [0, -0.7, 2])
    assert len(scan.warnings) == 1 and "19.3 degrees" in scan.warnings[0] and "tilted gantry" in scan.warnings[0]


def test_a_localizer_in_the_series_is_passed_over(tmp_path: Path) -> None:
    planes = series()
    scout = plane(np.zeros((40, 50), np.int16), (0, 0, 0), 99, planes[0].SeriesInstanceUID)
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scan = read_scan(found(write(tmp_path, [*planes, scout])))
    assert scan.array.shape[1:] == (COLUMNS, ROWS, SLICES) and "1 localizer image(s)" in scan.warnings[0]


def test_a_slice_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    planes = series()
    scan = read_scan(found(write(tmp_path, [*planes, planes[4]])))
    assert scan.array.shape[-1] == SLICES and scan.warnings == (
        "1 of its files are copies of other slices and are passed over",
    )


def test_rounded_positions_are_even_enough_but_told(tmp_path: Path) -> None:
    planes = series(gap=0.625)
    for one in planes:
        one.ImagePositionPatient = [round(float(p), 1) for p in one.ImagePositionPatient]
    scan = read_scan(found(write(tmp_path, planes)))
    assert "vary from 0.6 to 0.7 mm" in scan.warnings[0] and abs(scan.grid.spacing[2] - 0.625) < 0.01


def test_what_the_header_says_of_gaps_and_grey_is_told(tmp_path: Path) -> None:
    scan = read_scan(found(write(tmp_path, series(SpacingBetweenSlices=4, PhotometricInterpretation="MONOCHROME1"))))
    assert "2 mm apart, but SpacingBetweenSlices says 4 mm" in scan.warnings[0]
    assert "MONOCHROME1" in scan.warnings[1]


def test_rounding_and_small_noise_pass_in_silence(tmp_path: Path) -> None:
    planes = series(gap=1.25)
    for index, one in enumerate(planes):
        one.ImagePositionPatient[2] = float(one.ImagePositionPatient[2]) + (-1) ** index * 1e-3
    assert read_scan(found(write(tmp_path, planes))).warnings == ()


# --- compressed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["RLE", "jp2klossless", "jpeg_ls_lossless", "bigendian", "implicit", "padded", "expb"]
)
def test_transfer_syntaxes_agree(tmp_path: Path, name: str) -> None:
    """pydicom's MR_small in several encodings, each as a series of three slices."""
    for folder, source in (("a", "MR_small"), ("b", f"MR_small_{name}")):
        (tmp_path / folder).mkdir()
        for k in range(3):
            one = pydicom.dcmread(TEST_FILES / f"{source}.dcm")
            one.ImagePositionPatient[2] = 6.6406 + k
            one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = generate_uid()
            one.save_as(tmp_path / folder / f"{k}.dcm")
    plain, packed = (read_scan(found(tmp_path / folder)) for folder in "ab")
    assert np.array_equal(plain.array, packed.array) and plain.grid.same_as(packed.grid, 1e-9)
    assert np.array_equal(plain.array[0, :, :, 0].T, pydicom.dcmread(TEST_FILES / "MR_small.dcm").pixel_array)


@pytest.mark.parametrize("keep", [0.3, 0.8, 0.99])
@pytest.mark.parametrize("packed", [False, True])
def test_a_truncated_slice_is_named(tmp_path: Path, keep: float, packed: bool) -> None:
    planes = series()
    if packed:
        for one in planes:
            one.compress(RLELossless)
    file = write(tmp_path, planes) / "05.dcm"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ScanError, match=r"05\.dcm: its pixels cannot be read|missing|its header|gaps"):
        for path in find_scans(tmp_path):
            read_scan(path)


# --- series that are no volume ------------------------------------------------------------------------------


def test_a_missing_slice_is_counted_and_placed(tmp_path: Path) -> None:
    planes = series(12)
    del planes[4]
    refused(write(tmp_path, planes), "1 slice is missing", "gap between 08.dcm and 07.dcm is 4 mm, elsewhere 2 mm")
    shutil.rmtree(tmp_path)
    planes = series(12)
    refused(write(tmp_path, [*planes[:3], *planes[5:7], *planes[8:]]), "3 slices are missing", "is 6 mm")


@pytest.mark.parametrize("slices", [3, 4, 200])
@pytest.mark.parametrize("where", [0, 1, -1])
def test_a_missing_slice_is_seen_wherever_it_is(tmp_path: Path, slices: int, where: int) -> None:
    planes = series(slices + 1, gap=1.0)
    gap = {0: 1, 1: 2, -1: slices - 1}[where]
    if slices == 3 and where == 1:
        gap = 1
    del planes[gap]
    refused(write(tmp_path, planes, "{:03}".format), "1 slice is missing")


def test_uneven_gaps_are_named(tmp_path: Path) -> None:
    planes = series(8)
    for k, height in enumerate((0, 2, 4, 6, 6.7, 10, 13.1, 16)):
        planes[k].ImagePositionPatient[2] = height
    refused(
        write(tmp_path, planes), "vary from 0.7 mm (between 05.dcm and 04.dcm) to 3.3 mm (between 04.dcm and 03.dcm)"
    )


def test_gaps_that_drift_are_refused(tmp_path: Path) -> None:
    planes = series(100, gap=1.0)
    for k, one in enumerate(planes):
        one.ImagePositionPatient[2] = k + 2.4e-4 * k * k
    refused(write(tmp_path, planes, "{:03}".format), "its gaps drift", "even grid")


def test_slices_that_are_shifted_unevenly_are_refused(tmp_path: Path) -> None:
    planes = series()
    planes[5].ImagePositionPatient[1] = -26.0
    refused(write(tmp_path, planes), "shifted against each other unevenly: 05.dcm")


@pytest.mark.parametrize(
    ("tag", "values", "words"),
    [
        ("DiffusionBValue", (0.0, 500.0, 1000.0), "they differ by DiffusionBValue (0.0, 500.0, 1000.0)"),
        ("EchoTime", ("2.5", "5"), "they differ by EchoTime (2.5, 5)"),
        ("TemporalPositionIdentifier", tuple(range(1, 7)), "TemporalPositionIdentifier (1, 2, 3, 4 …)"),
        ("PatientComments", ("a", "b"), "no tag was found"),
    ],
)
def test_interleaved_volumes_are_counted_and_told_apart(
    tmp_path: Path, tag: str, values: tuple[object, ...], words: str
) -> None:
    uid = generate_uid()
    planes = [one for value in values for one in series(SeriesInstanceUID=uid, **{tag: value})]
    refused(write(tmp_path, planes, "{:03}.dcm".format), f"holds {len(values)} volumes", "10 slices each", words)


def test_interleaved_volumes_of_which_one_is_not_whole(tmp_path: Path) -> None:
    uid = generate_uid()
    planes = [one for _ in range(3) for one in series(SeriesInstanceUID=uid)][:-1]
    refused(write(tmp_path, planes), "2 to 3 slices lie in one place")


def test_one_slice_again_with_another_uid_is_not_taken_for_a_copy(tmp_path: Path) -> None:
    planes = series()
    again = plane(voxels()[2], planes[2].ImagePositionPatient, 3, planes[0].SeriesInstanceUID)
    refused(write(tmp_path, [*planes, again]), "1 to 2 slices lie in one place", "09.dcm", "01.dcm")


def test_slices_of_other_sizes_spacings_and_directions(tmp_path: Path) -> None:
    planes = series()
    other = plane(np.zeros((4, 5), np.int16), (0, 0, 40), 11, planes[0].SeriesInstanceUID)
    refused(write(tmp_path / "a", [*planes, other]), "2 sizes: 9 x 11 (10), 5 x 4 (1)")
    planes[3].PixelSpacing = [0.5, 0.5]
    refused(write(tmp_path / "b", planes), "pixels of 0.5 x 0.5 mm in 07.dcm, but of 0.7 x 0.5 mm")
    planes = series()
    planes[3].ImageOrientationPatient = list(OBLIQUE)
    refused(write(tmp_path / "c", planes), "2 directions")
    refused(write(tmp_path / "d", series(ImageOrientationPatient=[1, 0, 0, 0.5, 0.5, 0])), "right angles")


def test_a_localizer_alone_a_single_slice_and_colours(tmp_path: Path) -> None:
    refused(write(tmp_path / "a", series(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])), "a localizer")
    refused(write(tmp_path / "b", series(1)), "a single slice (9 x 11 pixels)")
    rgb = series(1, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0, BitsAllocated=8)
    refused(write(tmp_path / "c", rgb), "colour")
    bare = series(3, SOPClassUID=SecondaryCaptureImageStorage, ImagePositionPatient=None, PixelSpacing=None)
    refused(write(tmp_path / "d", bare), "none of its slices says where it lies", "secondary capture")
    some = series()
    del some[2].ImagePositionPatient
    refused(write(tmp_path / "e", some), "08.dcm does not say where it lies")


def test_images_without_pixels_and_constant_ones(tmp_path: Path) -> None:
    planes = series()
    for one in planes:
        del one.Rows, one.PixelData
    refused(write(tmp_path / "a", planes), "holds no image though it says that it is one")
    planes = series()
    for one in planes:
        one.PixelData = bytes(len(one.PixelData))
    refused(write(tmp_path / "b", planes), "constant")


# --- enhanced multi-frame -----------------------------------------------------------------------------------


def enhanced(path: Path, frames: Sequence[dict[str, Any]], pixels: np.ndarray, packed: bool = False) -> Path:
    """One enhanced MR file; each frame gives ``z``, and may give slope, intercept, TemporalPositionIndex, StackID."""
    one = plane(pixels[0], (0, 0, 0), 1, generate_uid(), SOPClassUID=EnhancedMRImageStorage, Modality="MR")
    for name in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        delattr(one, name)
    one.NumberOfFrames, one.PixelData = len(frames), pixels.astype("<i2").tobytes()
    shared = group(PixelMeasuresSequence={"PixelSpacing": [0.5, 0.7]},
                   PlaneOrientationSequence={"ImageOrientationPatient": list(AXIAL)})  # fmt: skip
    one.SharedFunctionalGroupsSequence = [shared]
    one.PerFrameFunctionalGroupsSequence = [
        group(
            PlanePositionSequence={"ImagePositionPatient": [-10, -20, frame["z"]]},
            PixelValueTransformationSequence={
                "RescaleSlope": frame.get("slope", 1), "RescaleIntercept": frame.get("intercept", 0),
                "RescaleType": "US",
            },
            FrameContentSequence={k: v for k, v in frame.items() if k in ("TemporalPositionIndex", "StackID")},
        )
        for frame in frames
    ]  # fmt: skip
    if packed:
        one.compress(RLELossless)
    path.parent.mkdir(parents=True, exist_ok=True)
    one.save_as(path, enforce_file_format=True)
    return path.parent


def group(**sequences: dict[str, Any]) -> Dataset:
    whole = Dataset()
    for name, content in sequences.items():
        item = Dataset()
        for key, value in content.items():
            setattr(item, key, value)
        setattr(whole, name, [item])
    return whole


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rescale", ["one", "each", "none"])
def test_frames_are_sorted_and_rescaled_each_by_its_own_values(tmp_path: Path, rescale: str, packed: bool) -> None:
    heights = [6.0, 2.0, 8.0, 0.0, 4.0, 10.0, 12.0, 14.0]
    slopes = {"one": [0.5] * 8, "each": [2.0, 3.5, 0.5, 1, 1, 1, 7, 1], "none": [1] * 8}[rescale]
    offsets = {"one": [-3] * 8, "each": [5, 0, 0, -7, 0, 0, 0, 1], "none": [0] * 8}[rescale]
    frames = [{"z": z, "slope": s, "intercept": i} for z, s, i in zip(heights, slopes, offsets)]
    scan = read_scan(found(enhanced(tmp_path / "a.dcm", frames, voxels(8), packed)))
    expected = voxels(8) * np.array(slopes)[:, None, None] + np.array(offsets)[:, None, None]
    assert np.allclose(scan.array[0], expected[np.argsort(heights)].transpose(2, 1, 0))
    assert np.allclose(scan.grid.affine, [[-0.7, 0, 0, 10], [0, -0.5, 0, 20], [0, 0, 2, 0], [0, 0, 0, 1]])
    assert scan.array.dtype == (np.int16 if rescale == "none" else np.float32) and scan.modality == "MR"


def test_frames_of_several_times_or_stacks_are_refused(tmp_path: Path) -> None:
    times = [{"z": 2.0 * k, "TemporalPositionIndex": t} for t in (1, 2) for k in range(4)]
    refused(enhanced(tmp_path / "a" / "x", times, voxels(8)), "holds 2 volumes", "TemporalPositionIndex (1, 2)")
    stacks = [{"z": 2.0 * k, "StackID": s} for s in ("A", "B") for k in range(4)]
    refused(enhanced(tmp_path / "b" / "x", stacks, voxels(8)), "holds 2 volumes", "StackID (A, B)")


def test_a_frame_that_is_missing_is_named(tmp_path: Path) -> None:
    frames = [{"z": z} for z in (0, 2, 6, 8)]
    refused(enhanced(tmp_path / "a.dcm", frames, voxels(4)), "missing", "frame 2 of a.dcm", "frame 3 of a.dcm")


def test_an_older_multiframe_file_has_no_places(tmp_path: Path) -> None:
    one = series(1, NumberOfFrames=4)[0]
    one.PixelData = voxels(4).tobytes()
    refused(write(tmp_path, [one]), "none of its slices says where it lies")


def test_each_multiframe_file_is_a_scan(tmp_path: Path) -> None:
    for name in ("one.dcm", "two.dcm"):
        enhanced(tmp_path / name, [{"z": k} for k in range(8)], voxels(8))
    assert [scan_name(path) for path in find_scans(tmp_path)] == [f"{tmp_path.name}_one", f"{tmp_path.name}_two"]


# --- folders ------------------------------------------------------------------------------------------------


def test_series_of_one_folder_are_parted_and_named_by_their_numbers(tmp_path: Path) -> None:
    write(tmp_path / "Eve", series(SeriesNumber=2), "a{}.dcm".format)
    write(tmp_path / "Eve", series(SeriesNumber=10), "b{}.dcm".format)
    write(tmp_path / "Eve", series(SeriesNumber=10), "c{}".format)
    write(tmp_path / "Eve", series(SeriesNumber=None), "d{}".format)
    paths = find_scans(tmp_path)
    assert [scan_name(path) for path in paths] == ["Eve_2", "Eve_b10", "Eve_c10", "Eve_d10"]
    assert all(len(files_of(path)) == SLICES for path in paths)


def test_what_is_no_image_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "ct", series())
    for name in ("rtplan.dcm", "rtdose.dcm", "reportsi.dcm", "liver_1frame.dcm", "dicomdirtests/DICOMDIR"):
        shutil.copy(TEST_FILES / name, tmp_path / "ct")
    (tmp_path / "ct" / "notes").write_text("\x08 no scan")
    (tmp_path / "ct" / ".hidden.dcm").write_bytes(b"x")
    assert len(find_scans(tmp_path)) == 1 and len(files_of(found(tmp_path))) == SLICES
    (tmp_path / "plans").mkdir()
    shutil.copy(TEST_FILES / "rtplan.dcm", tmp_path / "plans")
    with pytest.raises(DataError, match="no scan found"):
        find_scans(tmp_path / "plans")


def test_files_that_claim_to_be_dicom_are_named_together(tmp_path: Path) -> None:
    write(tmp_path, series(), "whole{}".format)
    for index in range(3):
        (tmp_path / f"{index}.dcm").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "9.DCM").write_bytes(b"")
    broken, whole = find_scans(tmp_path)
    assert broken.name == "0.dcm" and read_scan(whole).array.shape[-1] == SLICES
    with pytest.raises(ScanError, match="0.dcm: a git-LFS pointer.*, and 3 more such file"):
        read_scan(broken)


def test_a_series_in_two_folders_is_no_volume_but_copies_are(tmp_path: Path) -> None:
    planes = series(20)
    write(tmp_path / "first", planes[:10])
    write(tmp_path / "second", planes[10:])
    for path in find_scans(tmp_path):
        with pytest.raises(ScanError, match="is a part of a series, other slices of which lie in"):
            read_scan(path)
    shutil.rmtree(tmp_path / "second")
    shutil.copytree(tmp_path / "first", tmp_path / "copy")
    assert [read_scan(path).array.shape[-1] for path in find_scans(tmp_path)] == [10, 10]


def test_a_file_in_the_middle_of_a_series_stands_for_it(tmp_path: Path) -> None:
    write(tmp_path, series())
    assert np.array_equal(read_scan(tmp_path / "05.dcm").array, read_scan(found(tmp_path)).array)


def test_what_was_found_is_forgotten_when_files_change(tmp_path: Path) -> None:
    planes = series()
    path = found(write(tmp_path, planes[:-1]))
    assert read_scan(path).array.shape[-1] == SLICES - 1
    planes[-1].save_as(tmp_path / "00.dcm", enforce_file_format=True)
    assert read_scan(path).array.shape[-1] == SLICES, "a file was added"
    (tmp_path / "05.dcm").unlink()
    with pytest.raises(ScanError, match="missing"):
        read_scan(found(tmp_path))
    planes[0].PixelSpacing = [9, 9]
    file = tmp_path / "09.dcm"
    planes[0].save_as(file, enforce_file_format=True)
    os.utime(file, ns=(1, 1))
    with pytest.raises(ScanError, match="pixels of 9 x 9 mm"):
        read_scan(found(tmp_path))


def test_links_to_series_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "real" / "deep" / "er", series())
    (tmp_path / "top").mkdir()
    try:
        (tmp_path / "top" / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    except OSError:
        pytest.skip("this system does not allow links")
    assert read_scan(found(tmp_path / "top")).array.shape[-1] == SLICES


# --- real ones ----------------------------------------------------------------------------------------------

REAL = {
    "dicom/mr_hcrop_40slices": ((34, 50, 40), "MR", "PGBM-003"),
    "dicom/mr_prostatex0000_t2tsetra": ((384, 384, 19), "MR", "ProstateX-0000"),
    "dicom/mr_prostatex0000_ep2ddifftraDYNDIST": (
        "holds 3 volumes in the same place, 19 slices each; they differ by SequenceName (*ep_b50t, *ep_b400t, "
        "*ep_b800t)"
    ),
    "ugly/dicom_prostatex_missing_slice": (
        "1 slice is missing: the gap between 1-07.dcm and 1-05.dcm is 6 mm, elsewhere 3 mm"
    ),
    "ugly/dicom_ct_head_tilt18_variable_spacing": (
        "the gaps between its slices vary from 1.081 mm (between 14.dcm and 15.dcm) to 6.999 mm (between 24.dcm and "
        "25.dcm)"
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_real_series(shared_data: Path, name: str) -> None:
    folder, expected = shared_data / name, REAL[name]
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    if isinstance(expected, str):
        refused(folder, expected)
        return
    scan = read_scan(found(folder))
    assert (scan.array.shape[1:], scan.modality, scan.patient) == expected and scan.warnings == ()


def test_a_real_series_lies_where_simpleitk_puts_it(shared_data: Path) -> None:
    import SimpleITK

    folder = shared_data / "dicom" / "mr_prostatex0000_t2tsetra"
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    image, scan = reader.Execute(), read_scan(found(folder))
    assert np.array_equal(SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0), scan.array[0])
    for voxel in ((0, 0, 0), (383, 0, 18), (10, 200, 7)):
        there = np.array(image.TransformIndexToPhysicalPoint(voxel)) * [-1, -1, 1]
        assert np.allclose((scan.grid.affine @ [*voxel, 1])[:3], there, atol=1e-3)


PASSED_OVER = None
PYDICOM = {
    "693_J2KI.dcm": "a single slice",
    "CT_small.dcm": "a single slice",
    "ExplVR_BigEnd.dcm": "a colour image",
    "ExplVR_BigEndNoMeta.dcm": PASSED_OVER,
    "ExplVR_LitEndNoMeta.dcm": PASSED_OVER,
    "GDCMJ2K_TextGBR.dcm": "a colour image",
    "J2K_pixelrep_mismatch.dcm": "a single slice",
    "JPEG-lossy.dcm": "none of its slices says where it lies",
    "JPEG2000-embedded-sequence-delimiter.dcm": "none of its slices says where it lies",
    "JPEG2000.dcm": "none of its slices says where it lies",
    "JPEGLSNearLossless_08.dcm": "none of its slices says where it lies",
    "JPEGLSNearLossless_16.dcm": "none of its slices says where it lies",
    "JPGExtended.dcm": "none of its slices says where it lies",
    "MR_small.dcm": "a single slice",
    "MR_small_RLE.dcm": "a single slice",
    "MR_small_bigendian.dcm": "a single slice",
    "MR_small_expb.dcm": "a single slice",
    "MR_small_implicit.dcm": "a single slice",
    "MR_small_jp2klossless.dcm": "a single slice",
    "MR_small_jpeg_ls_lossless.dcm": "a single slice",
    "MR_small_padded.dcm": "a single slice",
    "MR_truncated.dcm": "a single slice",
    "SC_jpeg_no_color_transform.dcm": "a colour image",
    "SC_jpeg_no_color_transform_2.dcm": "a colour image",
    "SC_rgb_dcmtk_+eb+cr.dcm": "a colour image",
    "SC_rgb_dcmtk_+eb+cy+n1.dcm": "a colour image",
    "SC_rgb_dcmtk_+eb+cy+n2.dcm": "a colour image",
    "SC_rgb_dcmtk_+eb+cy+np.dcm": "a colour image",
    "SC_rgb_dcmtk_+eb+cy+s2.dcm": "a colour image",
    "SC_rgb_dcmtk_+eb+cy+s4.dcm": "a colour image",
    "SC_rgb_gdcm_KY.dcm": "a colour image",
    "SC_rgb_jls_lossy_line.dcm": "a colour image",
    "SC_rgb_jls_lossy_sample.dcm": "a colour image",
    "SC_rgb_jpeg.dcm": "a colour image",
    "SC_rgb_jpeg_app14_dcmd.dcm": "a colour image",
    "SC_rgb_jpeg_dcmd.dcm": "a colour image",
    "SC_rgb_jpeg_dcmtk.dcm": "a colour image",
    "SC_rgb_jpeg_gdcm.dcm": "a colour image",
    "SC_rgb_jpeg_lossy_gdcm.dcm": "a colour image",
    "SC_rgb_rle.dcm": "a colour image",
    "SC_rgb_rle_16bit.dcm": "a colour image",
    "SC_rgb_rle_16bit_2frame.dcm": "a colour image",
    "SC_rgb_rle_2frame.dcm": "a colour image",
    "SC_rgb_rle_32bit.dcm": "a colour image",
    "SC_rgb_rle_32bit_2frame.dcm": "a colour image",
    "SC_rgb_small_odd.dcm": "a colour image",
    "SC_rgb_small_odd_big_endian.dcm": "a colour image",
    "SC_rgb_small_odd_jpeg.dcm": "a colour image",
    "SC_ybr_full_422_uncompressed.dcm": "a colour image",
    "UN_sequence.dcm": "holds no image though it says that it is one",
    "badVR.dcm": PASSED_OVER,
    "empty_charset_LEI.dcm": PASSED_OVER,
    "examples_jpeg2k.dcm": "a colour image",
    "examples_overlay.dcm": "a single slice",
    "examples_palette.dcm": "a colour image",
    "examples_rgb_color.dcm": "a colour image",
    "examples_ybr_color.dcm": "a colour image",
    "image_dfl.dcm": "none of its slices says where it lies",
    "liver_1frame.dcm": PASSED_OVER,
    "liver_expb_1frame.dcm": PASSED_OVER,
    "meta_missing_tsyntax.dcm": PASSED_OVER,
    "nested_priv_SQ.dcm": PASSED_OVER,
    "no_meta.dcm": "the file is no DICOM",
    "no_meta_group_length.dcm": "holds no image though it says that it is one",
    "priv_SQ.dcm": "holds no image though it says that it is one",
    "reportsi.dcm": PASSED_OVER,
    "reportsi_with_empty_number_tags.dcm": PASSED_OVER,
    "rtdose.dcm": PASSED_OVER,
    "rtdose_1frame.dcm": PASSED_OVER,
    "rtdose_expb.dcm": PASSED_OVER,
    "rtdose_expb_1frame.dcm": PASSED_OVER,
    "rtdose_rle.dcm": PASSED_OVER,
    "rtdose_rle_1frame.dcm": PASSED_OVER,
    "rtplan.dcm": PASSED_OVER,
    "rtplan_truncated.dcm": PASSED_OVER,
    "rtstruct.dcm": PASSED_OVER,
    "test-SR.dcm": PASSED_OVER,
    "waveform_ecg.dcm": PASSED_OVER,
}
"""Every file of pydicom's installed test files, alone in a folder: why it is skipped; None: it is no image at all."""

PYDICOM_FOLDERS = {
    "77654033/CR1": ["none of its slices says where it lies"],
    "77654033/CR2": ["none of its slices says where it lies"],
    "77654033/CR3": ["none of its slices says where it lies"],
    "77654033/CT2": ["161 slices are missing: the gap between 17106 and 17136 is 202.5 mm, elsewhere 1.25 mm"],
    "98892001/CT2N": ["a localizer"],
    "98892001/CT5N": [(16, 16, 5)],
    "98892003/MR1": ["a single slice"] * 3,
    "98892003/MR2": ["3 directions", "3 directions", "a single slice"],
    "98892003/MR700": ["7 directions"],
    "TINY_ALPHA": ["holds no image though it says that it is one"],
}


def test_every_test_file_of_pydicom_has_an_outcome() -> None:
    there = {path.name for path in TEST_FILES.iterdir() if path.suffix == ".dcm"}
    assert there == set(PYDICOM)


@pytest.mark.parametrize("name", PYDICOM)
def test_files_of_pydicom(tmp_path: Path, name: str) -> None:
    expected = PYDICOM[name]
    shutil.copy(TEST_FILES / name, tmp_path)
    if expected is None:
        with pytest.raises(DataError, match="no scan found"):
            find_scans(tmp_path)
    else:
        refused(tmp_path, expected)


@pytest.mark.parametrize("name", PYDICOM_FOLDERS)
def test_folders_of_pydicom(name: str) -> None:
    outcomes: list[object] = []
    for path in find_scans(TEST_FILES / "dicomdirtests" / name):
        try:
            outcomes.append(read_scan(path).array.shape[1:])
        except ScanError as error:
            outcomes.append(error.message)
    expected = PYDICOM_FOLDERS[name]
    assert len(outcomes) == len(expected)
    for outcome, words in zip(outcomes, expected):
        assert outcome == words if isinstance(words, tuple) else words in str(outcome)


def test_mr_of_one_class_is_told_by_its_header(tmp_path: Path) -> None:
    assert read_scan(found(write(tmp_path / "a", series(Modality="MR", SOPClassUID=MRImageStorage)))).modality == "MR"
    assert read_scan(found(write(tmp_path / "b", series(Modality="PT")))).modality == ""


# --- pixels that are not there, or not what they seem -------------------------------------------------------


def pointed(one: Dataset, pixels: bytes) -> Dataset:
    one.PixelData = pixels
    return one


@pytest.mark.parametrize("keep", [0, 100, 2 * ROWS * COLUMNS - 2])
def test_fewer_bytes_than_pixels_are_no_image(tmp_path: Path, keep: int) -> None:
    planes = series()
    pointed(planes[4], planes[4].PixelData[:keep])
    words = f"06.dcm: its pixels cannot be read: {keep} of {2 * ROWS * COLUMNS} bytes are there"
    with pytest.raises(ScanError, match=words):
        read_scan(found(write(tmp_path, planes)))


@pytest.mark.parametrize("cut", [2, 60])
def test_a_file_that_ends_within_its_pixels_is_no_image(tmp_path: Path, cut: int) -> None:
    file = write(tmp_path, series()) / "05.dcm"
    file.write_bytes(file.read_bytes()[:-cut])
    with pytest.raises(ScanError, match=r"05\.dcm: its pixels cannot be read: .* of 198 bytes are there"):
        read_scan(found(tmp_path))


def test_frames_that_are_not_there_are_counted(tmp_path: Path) -> None:
    frames = [{"z": 2.0 * k} for k in range(8)]
    refused(enhanced(tmp_path / "a" / "x.dcm", frames, voxels(6)), "1188 of 1584 bytes are there")
    file = enhanced(tmp_path / "b" / "x.dcm", frames, voxels(8), packed=True) / "x.dcm"
    one = pydicom.dcmread(file)
    fragments = list(pydicom.encaps.generate_frames(one.PixelData, number_of_frames=8))
    one.PixelData = pydicom.encaps.encapsulate(fragments[:6])
    one.save_as(file)
    refused(file.parent, "6 of 8 compressed frames are there")


@pytest.mark.parametrize("cut", [10, 400])
def test_compressed_frames_that_end_early_are_named(tmp_path: Path, cut: int) -> None:
    frames = [{"z": 2.0 * k} for k in range(8)]
    file = enhanced(tmp_path / "x.dcm", frames, voxels(8), packed=True) / "x.dcm"
    file.write_bytes(file.read_bytes()[:-cut])
    refused(tmp_path, "x.dcm: its pixels cannot be read: it ends within compressed frame")


@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (0.5, 3)])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("signed", "bits"), [(0, 16), (0, 12), (1, 16)])
def test_inverted_values_are_as_stored(
    tmp_path: Path, signed: int, bits: int, packed: bool, slope: float, intercept: float
) -> None:
    stored = voxels() - 500 * signed
    planes = series(PhotometricInterpretation="MONOCHROME1", PixelRepresentation=signed, BitsStored=bits,
                    HighBit=bits - 1, RescaleSlope=slope, RescaleIntercept=intercept)  # fmt: skip
    for one, pixels in zip(planes, stored):
        pointed(one, pixels.astype("<i2").tobytes())
        if packed:
            one.compress(RLELossless)
    scan = read_scan(found(write(tmp_path, planes)))
    assert np.array_equal(scan.array[0], stored.transpose(2, 1, 0) * slope + intercept)
    assert scan.array.dtype == (np.int16 if slope == 1 else np.float32)
    assert "10 of its files are shown inverted" in scan.warnings[0]


def test_inverted_slices_among_others_are_as_stored_too(tmp_path: Path) -> None:
    planes = series()
    for one in planes[3:]:
        one.PhotometricInterpretation = "MONOCHROME1"
    scan = read_scan(found(write(tmp_path, planes)))
    assert np.array_equal(scan.array[0], voxels().transpose(2, 1, 0) - 1024)
    assert "7 of its files are shown inverted" in scan.warnings[0]


def test_inverted_values_that_cannot_be_told_are_refused(tmp_path: Path) -> None:
    for k in range(3):
        one = pydicom.dcmread(TEST_FILES / "MR_small_jp2klossless.dcm")
        one.ImagePositionPatient[2], one.PhotometricInterpretation = 6.6406 + k, "MONOCHROME1"
        one.SOPInstanceUID = generate_uid()
        one.save_as(tmp_path / f"{k}.dcm")
    refused(tmp_path, "inverted (MONOCHROME1) and compressed (JPEG 2000")


# --- what must not become one volume ------------------------------------------------------------------------


@pytest.mark.parametrize("tag", ["PatientID", "Modality"])
@pytest.mark.parametrize("with_uid", [True, False])
def test_patients_and_modalities_are_never_mixed(tmp_path: Path, tag: str, with_uid: bool) -> None:
    planes = series(20)
    for k, one in enumerate(planes):
        setattr(one, tag, ("CT", "MR")[k >= 10])
        if not with_uid:
            del one.SeriesInstanceUID
    scans = [read_scan(path) for path in find_scans(write(tmp_path, planes, "{:02}".format))]
    assert [scan.array.shape[-1] for scan in scans] == [10, 10]
    assert {scan.patient if tag == "PatientID" else scan.modality for scan in scans} == {"CT", "MR"}


def test_two_patients_of_one_uid_in_two_folders_are_no_parts(tmp_path: Path) -> None:
    planes = series(20)
    for k, one in enumerate(planes):
        one.PatientID = f"P{k // 10}"
    write(tmp_path / "a", planes[:10])
    write(tmp_path / "b", planes[10:])
    assert [read_scan(path).patient for path in find_scans(tmp_path)] == ["P0", "P1"]


def same_series(folder: Path) -> None:
    for file in folder.iterdir():
        one = pydicom.dcmread(file)
        one.SeriesInstanceUID = "1.2.3"
        one.save_as(file)


def test_multiframe_files_of_one_series_are_parts_or_volumes(tmp_path: Path) -> None:
    for name, first in (("one.dcm", 0), ("two.dcm", 8)):
        enhanced(tmp_path / "parts" / name, [{"z": first + k} for k in range(8)], voxels(8))
        enhanced(tmp_path / "times" / name, [{"z": k} for k in range(8)], voxels(8))
    same_series(tmp_path / "parts")
    same_series(tmp_path / "times")
    for path, other in zip(find_scans(tmp_path / "parts"), ("two.dcm", "one.dcm")):
        with pytest.raises(ScanError, match=f"is a part of a series, other slices of which lie in {other}"):
            read_scan(path)
    assert [read_scan(path).array.shape[-1] for path in find_scans(tmp_path / "times")] == [8, 8]


def test_enhanced_files_of_one_frame_make_a_series(tmp_path: Path) -> None:
    for k, pixels in enumerate(voxels()):
        enhanced(tmp_path / f"{k}.dcm", [{"z": 2 * k, "slope": 2, "intercept": -5}], pixels[np.newaxis])
    same_series(tmp_path)
    scan = read_scan(found(tmp_path))
    assert np.array_equal(scan.array[0], voxels().transpose(2, 1, 0) * 2 - 5)
    assert np.allclose(scan.grid.affine, [[-0.7, 0, 0, 10], [0, -0.5, 0, 20], [0, 0, 2, 0], [0, 0, 0, 1]])


def test_pixels_of_deflated_and_headless_files_are_counted(tmp_path: Path) -> None:
    deflated, bare = series(), series()
    for one in deflated:
        one.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    assert np.array_equal(read_scan(found(write(tmp_path / "a", deflated))).array[0, :, :, 0].T + 1024, voxels()[0])
    pointed(deflated[2], deflated[2].PixelData[:50])
    refused_by(write(tmp_path / "b", deflated), "50 of 198 bytes are there")
    del bare[3].PixelData
    refused_by(write(tmp_path / "c", bare), "07.dcm: its pixels cannot be read: it holds none")


def refused_by(folder: Path, words: str) -> None:
    with pytest.raises(ScanError, match=words):
        read_scan(found(folder))
