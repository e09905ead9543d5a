"""The prepared store: what is in it is right, whole, and made once."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.grid import Grid, to_canonical
from HybridMIMLib.data.layouts import Case, open_dataset
from HybridMIMLib.data.normalisation import intensity_range
from HybridMIMLib.data.phantom import CLASSES, make_phantom
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.data.scans import write_nifti
from HybridMIMLib.data.store import (
    POSITIONS_A_CLASS,
    PreparedCase,
    bring_to_plan,
    disk_need,
    open_case,
    prepare_store,
)
from HybridMIMLib.data.survey import CaseFacts, survey
from HybridMIMLib.errors import DataError, DiskError
from HybridMIMLib.events import EventLog
from HybridMIMLib.files import TEMPORARY, read_json

PLAN = Plan(1, (1.0, 1.0, 1.0), "percentiles", (-1000.0, 1000.0), (16, 16, 16), (8, 8, 8), (16, 16, 16))
WINDOW = replace(PLAN, normalisation="window")
TWO = (LabelClass(3, "three", (1, 0, 0)), LabelClass(7, "seven", (0, 1, 0)))
SHAPE = (24, 20, 18)


def found_case(folder: Path, image: np.ndarray, label: np.ndarray | None = None, name: str = "a") -> CaseFacts:
    grid = Grid((image.shape[-3], image.shape[-2], image.shape[-1]), np.eye(4))
    write_nifti(folder / f"{name}.nii", image, grid)
    if label is not None:
        write_nifti(folder / f"{name}_label.nii", label, grid)
    return survey(
        [Case(name, (folder / f"{name}.nii",), None if label is None else folder / f"{name}_label.nii")], EventLog()
    )[0]


def prepared(found: CaseFacts, store: Path, plan: Plan = PLAN, classes: tuple[LabelClass, ...] = ()) -> PreparedCase:
    return prepare_store([found], plan, classes, store, EventLog())[0]


def intensities(case: PreparedCase) -> np.ndarray:
    """The stored values as intensities again."""
    scale, offset = np.array(read_json(case.folder / "case.json")["scale"]).T[..., None, None, None]
    return np.asarray(case.image * scale + offset)


def random_image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(100, 30, SHAPE).astype(np.float32)


def two_labels() -> np.ndarray:
    label = np.zeros(SHAPE, np.uint8)
    label[2:9, 3:8, 4:9], label[12:20, 10:18, 3:15] = 7, 3
    return label


def same_normalised(case: PreparedCase, image: np.ndarray, within: float) -> None:
    """What the network gets is the scan between its 0.5th and 99.5th percentile."""
    low, high = np.percentile(image, (0.5, 99.5))
    wanted = np.clip((image.astype(np.float64) - low) / (high - low), 0, 1)
    got = np.clip((case.image[0].astype(np.float64) - case.low[0]) / (case.high[0] - case.low[0]), 0, 1)
    assert np.abs(got - wanted).max() < within


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e-3, 1, 112, 300, 32767, 65535, 1.7e6, 1e30])
@pytest.mark.parametrize("offset", [0, 1])
def test_no_range_of_intensities_is_lost(tmp_path: Path, scale: float, offset: float) -> None:
    image = ((np.random.default_rng(0).random(SHAPE) + offset) * scale).astype(np.float32)
    same_normalised(prepared(found_case(tmp_path, image), tmp_path / "store"), image, within=0.004)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float64"])
def test_every_type_of_voxel_is_stored(tmp_path: Path, dtype: str) -> None:
    top = 1.7e6 if dtype in ("int32", "float64") else np.iinfo(dtype).max
    image = (np.random.default_rng(0).random(SHAPE) * top).astype(dtype)
    same_normalised(prepared(found_case(tmp_path, image), tmp_path / "store"), image, within=0.004)


def test_a_far_offset_does_not_blur_a_small_range(tmp_path: Path) -> None:
    image = (1e6 + np.random.default_rng(0).integers(0, 50, SHAPE)).astype(np.float32)
    same_normalised(prepared(found_case(tmp_path, image), tmp_path / "store"), image, within=0.001)


def test_one_extreme_voxel_does_not_cost_the_rest_its_steps(tmp_path: Path) -> None:
    image = np.random.default_rng(0).random(SHAPE).astype(np.float32) * 50
    image[3, 3, 3] = 1e9
    same_normalised(prepared(found_case(tmp_path, image), tmp_path / "store"), image, within=0.001)


def test_a_scan_that_is_nearly_all_background_keeps_its_steps(tmp_path: Path) -> None:
    image = np.zeros(SHAPE, np.float32)
    image[2:5, 2:5, 2] = np.linspace(10, 100, 9).reshape(3, 3)
    case = prepared(found_case(tmp_path, image), tmp_path / "store")
    got = (case.image[0, 2:5, 2:5, 2].astype(float) - case.low[0]) / (case.high[0] - case.low[0])
    assert np.allclose(got, image[2:5, 2:5, 2] / 100, atol=0.001)


def test_a_constant_channel_has_a_range_too() -> None:
    for value in (0.0, -5.0, 1e-20, 1e8):
        ((low, high),) = intensity_range(np.full((1, 3, 3, 3), value, np.float32), PLAN)
        assert low < high and np.isfinite([low, high]).all()


def test_hounsfield_units_are_stored_as_they_are(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(-1024, 3072, SHAPE).astype(np.int16)
    case = prepared(found_case(tmp_path, image), tmp_path / "store", WINDOW)
    assert np.array_equal(case.image[0], image) and (case.low, case.high) == ((-1000,), (1000,))


def test_metal_beyond_16_bits_leaves_the_window_exact(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(-1024, 1000, SHAPE).astype(np.int32)
    image[0, 0, 0] = 70000
    got = intensities(prepared(found_case(tmp_path, image), tmp_path / "store", WINDOW))[0]
    assert np.abs(got - image).ravel()[1:].max() <= 0.05 and got[0, 0, 0] > 1000


def test_channels_are_scaled_each_for_itself(tmp_path: Path) -> None:
    files = tuple(tmp_path / f"{n}.nii" for n in range(2))
    images = [random_image(n) * scale for n, scale in ((0, 1e-6), (1, 1e5))]
    for path, image in zip(files, images):
        write_nifti(path, image, Grid(SHAPE, np.eye(4)))
    (found,) = survey([Case("a", files, None)], EventLog())
    case = prepared(found, tmp_path / "store", replace(PLAN, channels=2))
    for got, image in zip(intensities(case), images):
        low, high = np.percentile(image, (0.5, 99.5))
        inside = (image > low) & (image < high)
        assert np.abs(got - image)[inside].max() < 1e-4 * (high - low)


def test_a_turned_scan_lies_along_r_a_s_at_the_spacing_of_the_plan() -> None:
    affine = np.array([[0, 0, -2.0, 9], [-1.0, 0, 0, 5], [0, 1.5, 0, 3], [0, 0, 0, 1]])
    array = np.random.default_rng(0).normal(size=(1, 10, 12, 14)).astype(np.float32)
    grid = Grid((10, 12, 14), affine)
    brought, target = bring_to_plan(array, grid, replace(PLAN, spacing=(2.0, 1.0, 1.5)))
    assert target.axis_codes == "RAS" and target.spacing == (2, 1, 1.5) and target.shape == (14, 10, 12)
    assert np.array_equal(brought, to_canonical(array, grid)[0])


def test_labels_become_numbers_of_classes_and_their_places_are_right(tmp_path: Path) -> None:
    label = two_labels()
    case = prepared(found_case(tmp_path, random_image(), label), tmp_path / "store", classes=TWO)
    assert np.array_equal(case.label, np.select([label == 3, label == 7], [1, 2]))
    assert case.counts == ((label == 3).sum(), (label == 7).sum())
    assert np.array_equal(case.foreground, np.concatenate([np.argwhere(label == 3), np.argwhere(label == 7)]))


def test_a_class_that_is_not_there_has_no_places(tmp_path: Path) -> None:
    label = np.where(two_labels() == 7, 7, 0).astype(np.uint8)
    case = prepared(found_case(tmp_path, random_image(), label), tmp_path / "store", classes=TWO)
    assert case.counts == (0, (label == 7).sum()) and len(case.foreground) == case.counts[1]


def test_a_case_without_any_class_is_stored(tmp_path: Path) -> None:
    case = prepared(found_case(tmp_path, random_image(), np.zeros(SHAPE, np.uint8)), tmp_path / "s", classes=TWO)
    assert case.counts == (0, 0) and case.foreground.shape == (0, 3) and not case.label.any()


def test_a_large_class_keeps_places_from_all_over_it(tmp_path: Path) -> None:
    label = np.full((40, 40, 40), 3, np.uint8)
    label[0] = 0
    image = np.random.default_rng(0).normal(size=label.shape).astype(np.float32)
    case = prepared(found_case(tmp_path, image, label), tmp_path / "store", classes=TWO)
    assert case.counts == (POSITIONS_A_CLASS, 0) and len(np.unique(case.foreground, axis=0)) == POSITIONS_A_CLASS
    assert (case.label[tuple(case.foreground.T)] == 1).all()
    assert np.allclose(case.foreground.mean(0), (20, 19.5, 19.5), atol=0.5)


def test_arrays_are_mapped_and_hold_no_file_open(tmp_path: Path) -> None:
    case = prepared(found_case(tmp_path, random_image()), tmp_path / "store")
    assert isinstance(case.image, np.memmap) and not case.image.flags.writeable
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("open files are counted in /proc")
    before = len(os.listdir("/proc/self/fd"))
    cases = [open_case(case.folder) for _ in range(20)]
    assert all(one.image.shape == (1, *SHAPE) for one in cases)
    assert len(os.listdir("/proc/self/fd")) <= before + 2


def test_what_is_there_is_used_again(tmp_path: Path) -> None:
    found = found_case(tmp_path, random_image(), two_labels())
    folder = prepared(found, tmp_path / "store", classes=TWO).folder
    times = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    found.case.images[0].unlink()
    assert prepared(found, tmp_path / "store", replace(PLAN, crop=(32, 16, 16)), TWO).folder == folder
    assert times == {p: p.stat().st_mtime_ns for p in folder.iterdir()}


def test_whatever_changes_the_result_makes_another_folder(tmp_path: Path) -> None:
    found = found_case(tmp_path, random_image(), two_labels())
    store = tmp_path / "store"
    folders = [
        prepared(found, store, classes=TWO).folder,
        prepared(found, store, replace(PLAN, spacing=(2.0, 1.0, 1.0)), TWO).folder,
        prepared(found, store, WINDOW, TWO).folder,
        prepared(found, store, replace(WINDOW, window=(0.0, 80.0)), TWO).folder,
        prepared(found, store, classes=TWO[::-1]).folder,
        prepared(found_case(tmp_path, random_image(1), two_labels()), store, classes=TWO).folder,
        prepared(found_case(tmp_path, random_image(1)), store).folder,
    ]
    assert len(set(folders)) == len(folders)


def test_cases_of_one_content_and_two_names_do_not_meet(tmp_path: Path) -> None:
    found = [found_case(tmp_path, random_image(), name=name) for name in ("one", "other")]
    assert [c.name for c in prepare_store(found, PLAN, (), tmp_path / "store", EventLog())] == ["one", "other"]


def test_awkward_names_become_plain_folders(unicode_folder: Path) -> None:
    found = found_case(unicode_folder, random_image())
    for name in ("数 č/..", "..", "n" * 300, "CON: a*?"):
        case = prepared(replace(found, case=replace(found.case, name=name)), unicode_folder / "store")
        assert case.name == name and case.folder.name.isascii() and case.folder.parent.name == "store"


def test_leftovers_of_a_killed_process_are_removed_but_not_what_another_writes_now(tmp_path: Path) -> None:
    store = tmp_path / "store"
    for name, age in (("old", 100_000), ("young", 0)):
        (store / f"{TEMPORARY}{name}").mkdir(parents=True)
        os.utime(store / f"{TEMPORARY}{name}", (time.time() - age,) * 2)
    prepared(found_case(tmp_path, random_image()), store)
    assert [p.name for p in store.glob(f"{TEMPORARY}*")] == [f"{TEMPORARY}young"]


def test_a_folder_that_lost_its_description_is_made_anew(tmp_path: Path) -> None:
    found = found_case(tmp_path, random_image())
    folder = prepared(found, tmp_path / "store").folder
    (folder / "case.json").unlink()
    (folder / "image.npy").write_bytes(b"half")
    assert prepared(found, tmp_path / "store").image.shape == (1, *SHAPE)


def test_two_runs_that_prepare_the_same_case_at_once_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = found_case(tmp_path, random_image())
    store = tmp_path / "store"
    mkdir = Path.mkdir

    def other_run_is_first(path: Path, *args: object, **kwargs: object) -> None:
        if path.name.startswith(TEMPORARY):
            monkeypatch.setattr(Path, "mkdir", mkdir)
            prepared(found, store)
        mkdir(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", other_run_is_first)
    assert prepared(found, store).image.shape == (1, *SHAPE)
    assert len(os.listdir(store)) == 1


_IN_A_CHILD = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from HybridMIMLib.data import store
from HybridMIMLib.data.layouts import Case
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.data.survey import survey
from HybridMIMLib.errors import DiskError
from HybridMIMLib.events import EventLog
folder = Path(sys.argv[1])
found = survey([Case("a", (folder / "a.nii",), folder / "a_label.nii")], EventLog())
classes = [store.LabelClass(3, "x", (1, 0, 0)), store.LabelClass(7, "y", (1, 0, 0))]
plan = Plan(1, (1.0, 1.0, 1.0), "percentiles", (0.0, 1.0), (16, 16, 16), (8, 8, 8), (16, 16, 16))
{before}
try:
    store.prepare_store(found, plan, classes, folder / "store", EventLog())
except DiskError as error:
    print(error)
"""
_LIMIT = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
"""
_KILL = """
import os
save = np.save
def killed(path, array, **others):
    if path.name == sys.argv[2]:
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    save(path, array, **others)
np.save = killed
"""


def in_a_child(before: str, folder: Path, argument: str) -> subprocess.CompletedProcess[str]:
    program = _IN_A_CHILD.format(before=before)
    command = [sys.executable, "-c", program, str(folder), argument]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are of Unix")
@pytest.mark.parametrize("limit", [0, 16000])
def test_a_full_disk_is_named_and_nothing_half_written_is_left(unicode_folder: Path, limit: int) -> None:
    """The first limit lets no byte through, the second ends in the middle of the image."""
    found_case(unicode_folder, random_image(), two_labels())
    done = in_a_child(_LIMIT, unicode_folder, str(limit))
    assert done.returncode == 0, done.stderr
    assert str(unicode_folder / "store" / "a-") in done.stdout and "full" in done.stdout
    assert os.listdir(unicode_folder / "store") == []


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot kill itself like that")
@pytest.mark.parametrize("file", ["image.npy", "foreground.npy"])
def test_a_kill_in_mid_writing_leaves_nothing_that_looks_whole(tmp_path: Path, file: str) -> None:
    found = found_case(tmp_path, random_image(), two_labels())
    assert in_a_child(_KILL, tmp_path, file).returncode == -signal.SIGKILL
    left = os.listdir(tmp_path / "store")
    assert left and all(name.startswith(TEMPORARY) for name in left)
    case = prepared(found, tmp_path / "store", classes=TWO)
    assert case.image.shape == (1, *SHAPE) and len(case.foreground) == sum(case.counts)


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = found_case(tmp_path, random_image())
    monkeypatch.setattr("HybridMIMLib.data.store.shutil.disk_usage", lambda _: SimpleNamespace(free=3))
    with pytest.raises(DiskError, match="MB are needed"):
        prepared(found, tmp_path / "store")
    assert os.listdir(tmp_path / "store") == []


def test_a_phantom_keeps_its_organs(tmp_path: Path) -> None:
    phantom = make_phantom(2, "labelled", 1)
    write_nifti(tmp_path / "a.nii", phantom.image, phantom.grid)
    write_nifti(tmp_path / "l.nii", phantom.labels, phantom.grid)
    (found,) = survey([Case("a", (tmp_path / "a.nii",), tmp_path / "l.nii")], EventLog())
    case = prepared(found, tmp_path / "store", replace(WINDOW, spacing=(5.0, 5.0, 5.0)), CLASSES)
    ratio = np.prod(phantom.grid.spacing) / 125
    for number in range(1, 5):
        volume = (case.label == number).sum()
        assert volume == pytest.approx((phantom.labels == number).sum() * ratio, rel=0.1)


def test_real_scans_keep_their_intensities(shared_data: Path, tmp_path: Path) -> None:
    folders = (shared_data / "hippocampus_mr", shared_data / "sarcoma_ct_mr" / "MR_T1")
    cases = [open_dataset(folder, labelled=True).cases[0] for folder in folders]
    for found in survey(cases, EventLog()):
        plan = replace(PLAN, spacing=found.spacing)
        case = prepared(
            found, tmp_path / "store", plan, (LabelClass(1, "a", (1, 0, 0)), LabelClass(2, "b", (1, 0, 0)))
        )
        got = np.clip((case.image[0] - case.low[0]) / (case.high[0] - case.low[0]), 0, 1)
        assert 0.02 < got.mean() < 0.8 and got.std() > 0.05
        assert sum(case.counts) > 0


@pytest.mark.parametrize("spoil", ["case.json", "image.npy", "label.npy", "foreground.npy"])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_damaged_case_is_prepared_again(blobs: Path, tmp_path: Path, spoil: str, how: str) -> None:
    from HybridMIMLib.config import make_run
    from HybridMIMLib.data.prepare import prepare_folder

    run = make_run(None, {"labelled": str(blobs / "labelled")})
    whole = prepare_folder(run, "labelled", tmp_path, EventLog())
    file = whole.cases[1].folder / spoil
    content = file.read_bytes()
    if how == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        file.unlink()
    assert prepare_folder(run, "labelled", tmp_path, EventLog()).cases == whole.cases
    if spoil != "case.json":  # it holds when the arrays were written
        assert file.read_bytes() == content


def dates(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}


def test_a_file_that_was_changed_later_is_found_by_its_hash(tmp_path: Path) -> None:
    """As long as before, and readable: only the hash tells."""
    found = found_case(tmp_path, random_image(), two_labels())
    folder = prepared(found, tmp_path / "store", classes=TWO).folder
    for name in ("image.npy", "label.npy", "foreground.npy"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert open_case(folder) is None
        assert prepared(found, tmp_path / "store", classes=TWO).folder == folder
        assert (folder / name).read_bytes() == content


def test_a_copy_of_the_store_is_read_once_and_then_trusted_by_its_dates(tmp_path: Path) -> None:
    folder = prepared(found_case(tmp_path, random_image()), tmp_path / "store").folder
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    assert dates(copy)["image.npy"] != dates(folder)["image.npy"]
    case = open_case(copy)
    assert case is not None and np.array_equal(case.image, open_case(folder).image)  # type: ignore[union-attr]
    assert dates(copy)["image.npy"] == dates(folder)["image.npy"]


def test_a_copy_that_may_not_be_changed_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepared(found_case(tmp_path, random_image()), tmp_path / "store").folder
    os.utime(folder / "image.npy", (1, 1))

    def refused(*_: object, **__: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("HybridMIMLib.data.store.os.utime", refused)
    assert open_case(folder) is not None


def test_a_prepared_scan_that_went_away_is_named(tmp_path: Path) -> None:
    case = prepared(found_case(tmp_path, random_image()), tmp_path / "store")
    shutil.rmtree(case.folder)
    with pytest.raises(DataError, match="image.npy.*cannot be read.*prepared anew"):
        _ = case.image


def test_what_was_annotated_and_in_whom_is_told_by_the_data_set(tmp_path: Path) -> None:
    """And can be told anew, without preparing anew."""
    found = found_case(tmp_path, random_image(), two_labels())
    first = prepared(replace(found, patient="P1"), tmp_path / "store", classes=TWO)
    assert first.annotated is None and first.patient == "P1"
    before = dates(first.folder)
    for labels, numbers in (({7}, (2,)), ({3, 7, 99}, (1, 2)), (set(), ())):
        told = replace(found, annotated=frozenset(labels))
        case = prepared(told, tmp_path / "store", classes=TWO)
        assert case.annotated == numbers and case.patient == found.patient
        assert case.folder == first.folder and dates(case.folder) == before


@pytest.mark.parametrize("most", [3, 50, 100000])
def test_places_of_many_classes_are_those_of_slow_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr("HybridMIMLib.data.store.POSITIONS_A_CLASS", most)
    random = np.random.default_rng(0)
    label = (random.integers(1, 13, (37, 9, 8)) * (random.random((37, 9, 8)) < 0.5)).astype(np.uint8)
    label[label == 5] = 0
    classes = tuple(LabelClass(n, str(n), (1, 0, 0)) for n in range(1, 13))
    found = found_case(tmp_path, label.astype(np.float32), label)
    case = prepared(found, tmp_path / "store", classes=classes)
    assert case.counts == tuple(min(int((label == n).sum()), most) for n in range(1, 13)) and case.counts[4] == 0
    for number, places in enumerate(np.split(case.foreground, np.cumsum(case.counts)[:-1]), 1):
        assert (label[tuple(places.T)] == number).all()
        assert np.array_equal(places, np.unique(places, axis=0)) or not len(places)
        if case.counts[number - 1] < most:
            assert np.array_equal(places, np.argwhere(label == number))


def test_a_thin_class_is_in_the_store(tmp_path: Path) -> None:
    label = np.zeros(SHAPE, np.uint8)
    label[3], label[15, 6, 8] = 3, 7
    found = found_case(tmp_path, random_image(), label)
    case = prepared(found, tmp_path / "store", replace(PLAN, spacing=(3.0, 3.0, 3.0)), TWO)
    assert case.counts == (7 * 6, 1)


@pytest.mark.parametrize("kind", ["hounsfield", "magnetic", "two channels"])
def test_images_take_half_of_float32(tmp_path: Path, kind: str) -> None:
    shape = (64, 60, 50)
    random = np.random.default_rng(0)
    image = random.random(shape) * 1e6
    if kind == "hounsfield":
        image = random.integers(-1024, 3072, shape).astype(np.int16)
    found, plan = found_case(tmp_path, image), PLAN
    if kind == "two channels":
        files = (found.case.images[0],) * 2
        found, plan = replace(found, case=replace(found.case, images=files)), replace(PLAN, channels=2)
    case = prepared(found, tmp_path / "store", plan)
    assert (case.folder / "image.npy").stat().st_size <= 0.51 * 4 * image.size * plan.channels


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.7, 0.6, 2.0), (40.0, 40.0, 40.0)])
@pytest.mark.parametrize("labelled", [True, False])
def test_the_disk_need_is_never_too_low_and_seldom_much_too_high(
    tmp_path: Path, spacing: tuple[float, float, float], labelled: bool
) -> None:
    found = found_case(tmp_path, random_image(), two_labels() if labelled else None)
    plan = replace(PLAN, spacing=spacing)
    folder = prepared(found, tmp_path / "store", plan, TWO if labelled else ()).folder
    taken = sum(file.stat().st_size for file in folder.iterdir())
    # Much less where few of the voxels are of a class.
    assert taken <= disk_need([found], plan) <= (6 if labelled else 1.1) * taken + 4096
    assert disk_need([found] * 7, plan) == 7 * disk_need([found], plan)


def test_only_what_is_missing_counts_as_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = found_case(tmp_path, random_image())
    prepared(found, tmp_path / "store")
    monkeypatch.setattr("HybridMIMLib.data.store.shutil.disk_usage", lambda _: SimpleNamespace(free=3))
    assert prepared(found, tmp_path / "store").name == "a"


_SHARED = """
import os, signal, sys, time
from pathlib import Path
from HybridMIMLib.data import store
from HybridMIMLib.data.layouts import Case
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.data.survey import survey
from HybridMIMLib.events import EventLog
folder, start, last = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
found = survey([Case(p.stem, (p,), None) for p in sorted(folder.glob("*.nii"))], EventLog())
plan = Plan(1, (1.0, 1.0, 1.0), "percentiles", (0.0, 1.0), (16, 16, 16), (8, 8, 8), (16, 16, 16))
made, prepare = [], store._prepare_case
def counted(facts, *rest):
    if len(made) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    made.append(facts.case.name)
    return prepare(facts, *rest)
store._prepare_case = counted
time.sleep(max(start - time.time(), 0))
cases = store.prepare_store(found, plan, (), folder / "store", EventLog())
print(len(made), *(int(case.image[0, 0, 0, 0]) for case in cases))
"""


def many_scans(folder: Path, count: int) -> None:
    for number in range(count):
        image = np.full(SHAPE, 500, np.int16)
        image[0, 0, 0], image[1] = number, 0
        write_nifti(folder / f"{number:02d}.nii", image, Grid(SHAPE, np.eye(4)))


def in_another_process(folder: Path, start: float = 0, last: int = -1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _SHARED, str(folder), str(start), str(last)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_share_a_store(tmp_path: Path) -> None:
    many_scans(tmp_path, 12)
    start = time.time() + 4
    pair = [in_another_process(tmp_path, start) for _ in range(2)]
    results = [one.communicate(timeout=120)[0].split() for one in pair]
    assert [r[1:] for r in results] == [[str(n) for n in range(12)]] * 2
    assert len(os.listdir(tmp_path / "store")) == 12
    # Each uses what the other has made; both may be at the same one.
    assert 12 <= sum(int(r[0]) for r in results) <= 24


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot kill itself like that")
def test_a_killed_preparation_goes_on_where_it_was(tmp_path: Path) -> None:
    many_scans(tmp_path, 6)
    killed = in_another_process(tmp_path, last=4)
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    before = {folder: dates(folder) for folder in (tmp_path / "store").iterdir()}
    assert len(before) == 4
    assert in_another_process(tmp_path).communicate(timeout=120)[0].split() == ["2", *map(str, range(6))]
    assert all(dates(folder) == then for folder, then in before.items())
