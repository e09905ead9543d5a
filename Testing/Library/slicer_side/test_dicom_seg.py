"""DICOM SEG: what is written is read back equal, in the right place, with what made it inside."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("slicer", reason="needs slicer-core")

import pydicom
import slicer
import small_scenes as small
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from vtkmodules.util.numpy_support import vtk_to_numpy

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.errors import DataError, HybridMIMError, SettingsError
from HybridMIMLib.slicer_side import dicom_seg
from HybridMIMLib.slicer_side.dicom_seg import parse_terminology, source_files, why_no_dicom_seg, write_dicom_seg
from HybridMIMLib.slicer_side.results import Output, put_in_scene
from HybridMIMLib.slicer_side.scene import HeadlessScene, headless_scene
from HybridMIMLib.slicer_side.segments import ijk_to_ras, segmentation_node, volume_node
from HybridMIMLib.slicer_side.steps import finish

SHARED = Path(os.environ.get("HYBRIDMIM_SHARED_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"))
RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture
def held() -> HeadlessScene:
    return headless_scene()


def series(folder: Path, grid: np.ndarray, swap: bool = False, flip: bool = False) -> list[Path]:
    """An MR series of the planes of constant k of a grid; rows along i, or with ``swap`` along j."""
    uids, files = [generate_uid() for _ in range(3)], []
    lps = RAS @ grid
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    axes = (1, 0) if swap else (0, 1)
    for k in range(small.SHAPE[2]):
        image, direction = Dataset(), (lps[:3, :3] / spacing).copy()
        start = np.array([0.0, 0.0, k, 1.0])
        if flip:
            start[axes[0]] = small.SHAPE[axes[0]] - 1
            direction[:, axes[0]] *= -1
        image.file_meta = FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = MRImageStorage
        image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = uids
        image.PatientName, image.PatientID, image.PatientBirthDate, image.PatientSex = "Lékař^ünï", "1", "", ""
        image.SpecificCharacterSet = "ISO_IR 192"
        image.StudyID, image.StudyDate, image.StudyTime, image.AccessionNumber = "1", "20260101", "000000", ""
        image.ReferringPhysicianName, image.PositionReferenceIndicator = "", ""
        image.Modality, image.SeriesNumber, image.InstanceNumber = "MR", 1, k + 1
        image.Rows, image.Columns = small.SHAPE[axes[1]], small.SHAPE[axes[0]]
        image.PixelSpacing = [float(spacing[axes[1]]), float(spacing[axes[0]])]
        image.SliceThickness = float(spacing[2])
        image.ImageOrientationPatient = [*direction[:, axes[0]], *direction[:, axes[1]]]
        image.ImagePositionPatient = list((lps @ start)[:3])
        image.SamplesPerPixel, image.PhotometricInterpretation, image.PixelRepresentation = 1, "MONOCHROME2", 0
        image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
        image.PixelData = np.zeros((image.Rows, image.Columns), np.uint16).tobytes()
        files.append(folder / f"{small.SHAPE[2] - k}.dcm")
        image.save_as(files[-1], enforce_file_format=True)
    return files


def as_loaded(volume: Any, files: list[Path]) -> Any:
    """As Slicer leaves a volume that it read from these files."""
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    volume.SetAttribute("DICOM.instanceUIDs", " ".join(header.SOPInstanceUID for header in headers))
    storage = volume.GetScene().AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
    storage.SetFileName(str(files[0]))
    for file in files:
        storage.AddFileName(str(file))
    volume.SetAndObserveStorageNodeID(storage.GetID())
    return volume


def read_back(path: Path) -> tuple[Any, dict[str, np.ndarray]]:
    """The file, and (N, 3) RAS of the voxels of each segment, from its own functional groups."""
    highdicom = pytest.importorskip("highdicom", reason="needs highdicom")
    seg = highdicom.seg.segread(path)
    points: dict[str, list[np.ndarray]] = {one.SegmentLabel: [] for one in seg.SegmentSequence}
    measures = seg.SharedFunctionalGroupsSequence[0]
    down, right = map(float, measures.PixelMeasuresSequence[0].PixelSpacing)
    orientation = np.array(measures.PlaneOrientationSequence[0].ImageOrientationPatient, float)
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    for frame, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        start = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        rows, columns = np.nonzero(frame)
        place = start + columns[:, None] * right * orientation[:3] + rows[:, None] * down * orientation[3:]
        points[seg.SegmentSequence[number - 1].SegmentLabel].append(place * (-1, -1, 1))
    return seg, {name: small.sort_points(np.concatenate([np.zeros((0, 3)), *some])) for name, some in points.items()}


@pytest.mark.parametrize("flip", [False, True], ids=["", "flipped"])
@pytest.mark.parametrize("swap", [False, True], ids=["", "rows along j"])
@pytest.mark.parametrize("grid", ["axis-aligned", "oblique", "flipped"])
def test_what_is_written_is_read_back(held: HeadlessScene, tmp_path: Path, grid: str, swap: bool, flip: bool) -> None:
    pytest.importorskip("highdicom", reason="needs highdicom")
    folder = tmp_path / "Lékař ünï 数 a b"
    folder.mkdir()
    volume = as_loaded(small.volume(held.scene, small.AFFINES[grid]), series(folder, small.AFFINES[grid], swap, flip))
    small.put_under(volume, small.transform(held.scene, "grid"))
    made_with = {"hash": "ab" * 32, "device": "cpu", "folder": "C:\\x"}
    result = finish(put_in_scene(volume, small.labels(), small.model(), Output(), made_with))
    path = finish(write_dicom_seg(result.segmentation, volume, folder / "seg.dcm"))
    seg, points = read_back(path)
    for one in small.CLASSES:
        wanted = small.expected(small.labels() == one.label, small.AFFINES[grid], None)
        assert points[one.name].shape == wanted.shape and np.abs(points[one.name] - wanted).max(initial=0) < 1e-3
    spleen = seg.SegmentSequence[2]
    kind = spleen.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == ("78961009", "SCT", "Spleen")
    assert seg.SegmentSequence[1].SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    algorithm = spleen.SegmentationAlgorithmIdentificationSequence[0]
    assert (spleen.SegmentAlgorithmType, algorithm.AlgorithmName) == ("AUTOMATIC", "organs")
    assert algorithm.AlgorithmVersion == "ab" * 6
    for text in ("ab" * 32, '"device": "cpu"', "2026-03-01", "HybridMIM 0.1.0"):
        assert text in algorithm.AlgorithmParameters
    assert seg.PatientName == "Lékař^ünï" and seg.SeriesDescription == "scan organs"
    edited = result.segmentation.GetSegmentation().GetNthSegment(2)
    scalars = vtk_to_numpy(edited.GetRepresentation("Binary labelmap").GetPointData().GetScalars())
    scalars[np.flatnonzero(scalars == edited.GetLabelValue())[0]] = 0
    corrected, _ = read_back(finish(write_dicom_seg(result.segmentation, volume, folder / "corrected.dcm")))
    kinds = [one.SegmentAlgorithmType for one in corrected.SegmentSequence]
    assert kinds[2] == "SEMIAUTOMATIC" and set(kinds[:2]) == {"AUTOMATIC"}
    referenced = {one.ReferencedSOPInstanceUID for one in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referenced <= set(volume.GetAttribute("DICOM.instanceUIDs").split())


def test_overlapping_segments_corrected_by_hand(held: HeadlessScene, tmp_path: Path) -> None:
    """A segment of the user's on another grid and under another transform, over one of the model's."""
    pytest.importorskip("highdicom", reason="needs highdicom")
    grid = small.AFFINES["oblique"]
    volume = as_loaded(small.volume(held.scene, grid), series(tmp_path, grid))
    box = np.zeros(small.SHAPE, np.uint8)
    box[1:5, 2:8, 0:5] = 1
    left = "~SCT^123037004^Anatomical Structure~SCT^64033007^Kidney~SCT^7771000^Left~~^^~^^"
    hand = segmentation_node(held.scene, volume, box, [LabelClass(1, "Kidney", (0, 0, 1), left)], "by hand")
    small.put_under(hand, small.transform(held.scene, "linear", strength=0.1))
    finish(put_in_scene(volume, small.labels(), small.model(), Output("append", hand), {}))
    path = finish(write_dicom_seg(hand, volume, tmp_path / "seg.dcm"))
    seg, points = read_back(path)
    wanted = small.expected(small.labels() == 2, grid, None)
    assert np.abs(points["Foie gauché"] - wanted).max() < 1e-3
    kidney = seg.SegmentSequence[0]
    assert kidney.SegmentAlgorithmType == "MANUAL"
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    world = small.found(hand, "class_1")
    # Resampled: each voxel is the nearest one to where it lies.
    assert len(points["Kidney"]) and np.abs(points["Kidney"].mean(axis=0) - world.mean(axis=0)).max() < 3.0


def test_a_real_series(held: HeadlessScene, tmp_path: Path) -> None:
    pytest.importorskip("highdicom", reason="needs highdicom")
    folder = SHARED / "dicom" / "mr_hcrop_40slices"
    if not folder.is_dir():
        pytest.skip("needs dicom/mr_hcrop_40slices of the shared data")
    import SimpleITK

    reader = SimpleITK.ImageSeriesReader()
    names = reader.GetGDCMSeriesFileNames(str(folder))
    reader.SetFileNames(names)
    image = reader.Execute()
    grid = np.eye(4)
    grid[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    grid[:3, 3] = image.GetOrigin()
    array = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
    volume = as_loaded(volume_node(held.scene, array, RAS @ grid, "mr"), [Path(name) for name in names])
    labels = np.where(array > np.percentile(array, 90), 7, 0).astype(np.uint8)
    result = finish(put_in_scene(volume, labels, small.model(), Output(), {}))
    finish(write_dicom_seg(result.segmentation, volume, tmp_path / "seg.dcm"))
    _, points = read_back(tmp_path / "seg.dcm")
    voxels = points["Spleen"] @ np.linalg.inv(ijk_to_ras(volume))[:3, :3].T + np.linalg.inv(ijk_to_ras(volume))[:3, 3]
    back = np.zeros_like(labels)
    back[tuple(np.rint(voxels).astype(int).T)] = 7
    assert np.array_equal(back, labels)


def test_what_cannot_be_written_is_named(held: HeadlessScene, tmp_path: Path) -> None:
    pytest.importorskip("highdicom", reason="needs highdicom")
    grid, out = small.AFFINES["oblique"], tmp_path / "seg.dcm"
    files = series(tmp_path, grid)
    volume = as_loaded(small.volume(held.scene, grid), files)
    result = finish(put_in_scene(volume, small.labels(), small.model(), Output(), {}))

    def fails(kind: type[HybridMIMError], text: str, node: Any = result.segmentation) -> None:
        with pytest.raises(kind, match=text):
            finish(write_dicom_seg(node, volume, out))
        assert not out.exists()

    empty = finish(put_in_scene(volume, small.labels() * 0, small.model(), Output(), {}))
    fails(DataError, "no voxel", empty.segmentation)
    volume.SetSpacing(1.0, 1.0, 3.0)
    fails(DataError, "resampled or moved")
    volume.SetSpacing(0.9, 1.1, 3.0)
    files[3].write_bytes(b"no DICOM")
    fails(DataError, "cannot be read")
    files[3].unlink()
    fails(DataError, "1 of the 9 images")
    for file in files:
        file.unlink(missing_ok=True)
    fails(SettingsError, "not where they were")


def test_without_highdicom(held: HeadlessScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = small.AFFINES["oblique"]
    volume = as_loaded(small.volume(held.scene, grid), series(tmp_path, grid))
    monkeypatch.setattr(dicom_seg.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=r"not installed\. Install it with pip"):
        finish(write_dicom_seg(volume, volume, tmp_path / "seg.dcm"))


def test_a_scan_that_is_not_from_dicom(held: HeadlessScene) -> None:
    volume = small.volume(held.scene)
    assert "not loaded from DICOM" in why_no_dicom_seg(volume)
    assert source_files(volume) == ()


def test_files_come_from_the_database_where_there_is_one(
    held: HeadlessScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "1.dcm"
    file.touch()

    class Database:
        def fileForInstance(self, uid: str) -> str:  # noqa: N802
            return str(file) if uid == "1.2" else ""

    monkeypatch.setattr(slicer, "dicomDatabase", Database(), raising=False)
    volume = small.volume(held.scene)
    volume.SetAttribute("DICOM.instanceUIDs", "1.2 1.3")
    assert source_files(volume) == (file,)


def test_terminology_entries() -> None:
    assert parse_terminology(small.SPLEEN) == {
        "category": ("SCT", "123037004", "Anatomical Structure"),
        "type": ("SCT", "78961009", "Spleen"),
    }
    assert parse_terminology("") == {} == parse_terminology("a~b~c^d")
