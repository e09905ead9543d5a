"""The command line as a user meets it: help, wrong values, exit codes, settings that go round."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import TINY, hybridmim, tiny_options, write_blobs

import HybridMIMLib
from HybridMIMLib.cli import main, parse
from HybridMIMLib.commands import COMMANDS
from HybridMIMLib.config import Run, make_run, to_dict
from HybridMIMLib.errors import SettingsError
from HybridMIMLib.runs import load_settings, save_settings


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert ending.value.code == 0 and COMMANDS[command].summary[1:] in text
    assert all(f"--{option}" in text for option in COMMANDS[command].options)
    assert "Optional[" not in text and "Literal" not in text and "None" not in text


def test_every_setting_has_a_line_of_help() -> None:
    sections = [f.default_factory for f in dataclasses.fields(Run) if f.default_factory is not dataclasses.MISSING]
    for kind in (Run, *sections):
        assert all(f.metadata["help"] for f in dataclasses.fields(kind))  # type: ignore[arg-type]


def test_every_command_is_a_function_of_the_package() -> None:
    assert all(callable(getattr(HybridMIMLib, about.function or name)) for name, about in COMMANDS.items())


def test_overview_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0 and main(["--version"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS) and HybridMIMLib.__version__ in text


def test_no_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["learn"]) == 2
    assert "Commands are: prepare, pretrain" in capsys.readouterr().err


def test_help_loads_neither_torch_nor_numpy() -> None:
    code = (
        "import sys\nfrom HybridMIMLib.cli import main\ntry:\n main(['demo', '--help'])\nexcept SystemExit: pass\n"
        "sys.exit(str([m for m in ('torch', 'monai', 'numpy') if m in sys.modules]))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert said.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--pretraining.steps=many"], "--pretraining.steps cannot be many, it takes a whole number"),
        (["--pretraining.steps=0"], "pretraining.steps is 0"),
        (["--plan.normalisation=foo"], "takes one of 'auto', 'window', 'percentiles'"),
        (["--plan.crop=3"], "--plan.crop cannot be 3"),
        (["--plan.crop=[16,16]"], "Give three numbers"),
        (["--plan.crop=[16,16,16]", "--plan.region=[5,5,5]"], "not a multiple"),
        (["--finetuning.augment=maybe"], "true or false"),
        (["--device=tpu"], "device is 'tpu'"),
        (["--wrong=1"], "--wrong=1"),
        (["--config=missing.yaml"], "missing.yaml"),
        ([], "--unlabelled is missing"),
    ],
)
def test_a_wrong_value_is_one_line_and_exit_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["pretrain", f"--output={tmp_path / 'run'}", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said and said.startswith("error: ") and said.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_run_yaml_of_one_command_is_accepted_by_every_other(tmp_path: Path) -> None:
    run = make_run(None, {**TINY, "seed": 7, "unlabelled": "Lékař ünï 数 a b", "plan": {"spacing": [1.0, 2.0, 3.5]}})
    save_settings(tmp_path / "run.yaml", run)
    for command in COMMANDS:
        assert parse(command, ["--config", str(tmp_path / "run.yaml")]) == run
    assert parse("segment", ["--config", str(tmp_path / "run.yaml"), "--seed=8"]).seed == 8


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("pretraining.mask_ratio", [0.3, 0.6]),
        ("pretraining.mask_ratio", 0.4),
        ("pretraining.mask_ratio", None),
        ("pretraining.region_ratio", [0.5, 1.0]),
        ("network.strides", [[1, 1, 1], [2, 2, 1]]),
        ("pretraining.head_depth", 8),
    ],
)
def test_ranges_and_lists_of_lists_are_options_and_yaml(option: str, value: object, tmp_path: Path) -> None:
    section, name = option.split(".")
    features = ["--network.features=[4,8]"] if name == "strides" else []
    text = json.dumps(value)
    (tmp_path / "run.yaml").write_text(f"{section}:\n  {name}: {text}\n")
    for given in ([f"--{option}={text}"], [f"--{option}", text], ["--config", str(tmp_path / "run.yaml")]):
        run = parse("pretrain", [*features, *given])
        assert getattr(getattr(run, section), name) == value


@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        ("--pretraining.mask_ratio=half", "a range such as [0.3, 0.6]"),
        ("--pretraining.mask_ratio=[0.6, 0.3]", "the lower one first"),
        ("--network.strides=[2, 2]", "a list of lists such as [[1, 1, 1], [2, 2, 1]]"),
        ("--network.size=huge", "'tiny', 'small', 'base'"),
        ("--network.token=12", "Give 8 or 16"),
    ],
)
def test_a_wrong_option_says_what_it_takes(option: str, wanted: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse("pretrain", [option])
    assert wanted in str(caught.value) and "\n" not in str(caught.value)


def test_unknown_setting_in_a_config_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.yaml").write_text("pretraining:\n  stepz: 3\n")
    assert main(["pretrain", "--config", str(tmp_path / "run.yaml")]) == 2
    assert "stepz" in capsys.readouterr().err


def test_info_names_versions_devices_and_where_runs_are_kept(tmp_path: Path) -> None:
    said = hybridmim("info", env={**os.environ, "HYBRIDMIM_WORKSPACE": str(tmp_path / "none yet")})
    assert said.returncode == 0, said.stderr
    assert str(tmp_path / "none yet") in said.stdout
    assert all(word in said.stdout for word in ("torch", "monai", "SimpleITK", "cpu:"))


def test_the_way_by_commands_in_a_folder_with_an_awkward_name(blobs: Path, unicode_folder: Path) -> None:
    folder = unicode_folder
    for name in ("unlabelled", "labelled", "new"):
        shutil.copytree(blobs / name, folder / name)
    (folder / "new" / "images" / "broken.nii.gz").write_bytes(b"")
    prepared = hybridmim("prepare", "--unlabelled", folder / "unlabelled", "--output", folder / "p", *tiny_options())
    assert prepared.returncode == 0, prepared.stderr
    pretrained = hybridmim(
        "pretrain", "--unlabelled", folder / "unlabelled", "--output", folder / "pre", "--store", folder / "p/store",
        *tiny_options(),
    )  # fmt: skip
    assert pretrained.returncode == 0, pretrained.stderr
    assert not (folder / "pre" / "store").exists(), "the prepared store was not used"
    finetuned = hybridmim(
        "finetune", "--labelled", folder / "labelled", "--weights", folder / "pre", "--output", folder / "fine",
        *tiny_options(),
    )  # fmt: skip
    assert finetuned.returncode == 0, finetuned.stderr
    assert re.search(r"loaded (\d+) of \1 tensors", finetuned.stdout)
    segmented = hybridmim(
        "segment", "--scans", folder / "new", "--model", folder / "fine/model", "--output", folder / "out"
    )
    assert segmented.returncode == 3, "one scan was skipped"
    assert "warning: skipped" in segmented.stderr and "broken.nii.gz" in segmented.stderr.splitlines()[-1]
    labels = sorted(p.name for p in (folder / "out" / "labels").rglob("*"))
    assert labels == ["blob_0.nii.gz", "blob_1.nii.gz", "blob_2.nii.gz"]
    assert load_settings(folder / "fine" / "run.yaml").weights == str(folder / "pre")
    result = json.loads((folder / "out" / "result.json").read_text(encoding="utf-8"))
    assert len(result["labels"]) == 3 and len(result["warnings"]) == 1


def test_check_prints_every_scan_and_writes_nothing(blobs: Path, unicode_folder: Path) -> None:
    folder = unicode_folder
    shutil.copytree(blobs / "labelled", folder / "labelled")
    environment = {**os.environ, "HYBRIDMIM_WORKSPACE": str(folder / "workspace")}

    def checked(*arguments: object) -> subprocess.CompletedProcess[str]:
        return hybridmim("prepare", *arguments, env=environment)

    before = sorted(folder.rglob("*"))
    good = checked("--check", "--labelled", folder / "labelled")
    assert good.returncode == 0, good.stderr
    assert "5 scan(s) can be used" in good.stdout and "check scans" in good.stderr
    assert re.search(r"plan: 1 x 1 x 1.2 mm, intensities by zscore, crops of .*at most [0-9,]+ MB", good.stdout)
    assert sorted(folder.rglob("*")) == before
    (folder / "labelled" / "labels" / "blob_1.nii.gz").write_bytes(b"")
    some = checked("--labelled", folder / "labelled", "--check")
    # A training would not go on without a label map that is wrong.
    assert some.returncode == 1 and re.search("skipped +blob_1 .*the file is empty", some.stdout)
    assert "A preparation, or a training, would stop" in some.stdout
    for path in (folder / "labelled" / "images").iterdir():
        path.write_bytes(b"junk")
    assert checked("--check=true", "--labelled", folder / "labelled").returncode == 1
    none = checked("--check", "--labelled", folder / "nothing")
    assert none.returncode == 1 and "no such folder" in none.stderr
    assert checked("--check").returncode == 2
    assert not (folder / "workspace").exists()


def test_check_of_unlabelled_scans_of_which_one_is_broken(blobs: Path, tmp_path: Path) -> None:
    shutil.copytree(blobs / "unlabelled", tmp_path / "scans")
    (tmp_path / "scans" / "images" / "blob_1.nii.gz").write_bytes(b"")
    said = hybridmim("prepare", "--check", "--unlabelled", tmp_path / "scans")
    assert said.returncode == 3 and "4 scan(s) can be used, 1 cannot" in said.stdout


def test_check_says_what_would_end_a_preparation(blobs: Path, tmp_path: Path) -> None:
    shutil.copytree(blobs / "labelled", tmp_path / "labelled")
    (tmp_path / "labelled" / "classes.json").write_text('{"1": "Bright"}')
    said = hybridmim("prepare", "--check", "--labelled", tmp_path / "labelled")
    assert said.returncode == 1 and "holds label 2, but only [1] are named" in said.stdout


@pytest.mark.parametrize("spoil", ["no scan", "another grid", "not integers", "too few", "no label"])
def test_bad_labelled_folders_end_in_one_line(tmp_path: Path, spoil: str) -> None:
    import nibabel

    folder = write_blobs(tmp_path / "cases", 1 if spoil == "too few" else 3, labelled=True)
    label = folder / "labels" / "blob_0.nii.gz"
    image = nibabel.load(label)
    if spoil == "no scan":
        shutil.rmtree(folder / "images")
        shutil.rmtree(folder / "labels")
    elif spoil == "another grid":
        nibabel.save(nibabel.Nifti1Image(image.get_fdata()[:-2].astype("uint8"), image.affine), label)
    elif spoil == "not integers":
        nibabel.save(nibabel.Nifti1Image(image.get_fdata().astype("float32") * 0.7, image.affine), label)
    elif spoil == "no label":
        label.unlink()
    said = hybridmim("finetune", "--labelled", folder, "--output", tmp_path / "run", *tiny_options())
    error = said.stderr.strip().splitlines()[-1]
    assert said.returncode == 1 and error.startswith("error: ") and "Traceback" not in said.stderr
    assert str(folder) in error and len(error.split(". ")) >= 2, "names the place and the cure"
    assert not (tmp_path / "run" / "model").exists() and not (tmp_path / "run" / "result.json").exists()


@pytest.mark.skipif(os.name == "nt", reason="limits of file sizes are of POSIX")
def test_a_full_disk_is_named_and_leaves_nothing_that_looks_whole(blobs: Path, tmp_path: Path) -> None:
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000));"
        "from HybridMIMLib.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = ["pretrain", "--unlabelled", str(blobs / "unlabelled"), "--output", str(tmp_path / "run")]
    said = subprocess.run(
        [sys.executable, "-c", limited, *command, *tiny_options()], capture_output=True, text=True, check=False
    )
    error = said.stderr.strip().splitlines()[-1]
    assert said.returncode == 1 and "disk is full" in error and "Free some space" in error and "run" in error
    assert "Traceback" not in said.stderr
    assert not list((tmp_path / "run").rglob("*.npy")) and not list((tmp_path / "run").rglob(".tmp-*"))
    assert hybridmim(*command, *tiny_options()).returncode == 0, "the same command goes on when there is room"


def test_settings_tree_survives_yaml_and_json(tmp_path: Path) -> None:
    run = make_run(None, TINY)
    save_settings(tmp_path / "run.yaml", run)
    assert to_dict(load_settings(tmp_path / "run.yaml")) == json.loads(json.dumps(to_dict(run)))


def test_a_mistyped_path_is_not_in_the_way_of_the_right_one(blobs: Path, tmp_path: Path) -> None:
    output = ["--output", tmp_path / "run", *tiny_options()]
    assert hybridmim("pretrain", "--unlabelled", tmp_path / "nowhere", *output).returncode == 1
    assert hybridmim("pretrain", "--unlabelled", blobs / "unlabelled", *output).returncode == 0


def test_options_win_over_a_config_wherever_it_stands(tmp_path: Path) -> None:
    save_settings(tmp_path / "run.yaml", make_run(None, {"seed": 7, "output": "there"}))
    run = parse("pretrain", ["--seed=3", "--output", "here", "--config", str(tmp_path / "run.yaml")])
    assert (run.seed, run.output) == (3, "here")


def test_the_folder_of_another_command_is_not_taken_over_with_its_settings(tmp_path: Path) -> None:
    save_settings(tmp_path / "run.yaml", make_run(None, {"seed": 7, "output": str(tmp_path)}))
    (tmp_path / "about.json").write_text('{"command": "pretrain"}')
    config = ["--config", str(tmp_path / "run.yaml")]
    assert parse("pretrain", config).output == str(tmp_path)
    assert parse("finetune", config).output is None
    assert parse("finetune", [*config, "--output", "mine"]).output == "mine"


def test_settings_that_do_not_fit_the_weights_are_refused(blobs: Path, tmp_path: Path) -> None:
    HybridMIMLib.pretrain(unlabelled=str(blobs / "unlabelled"), output=str(tmp_path / "pre"), **TINY)
    call = {"labelled": str(blobs / "labelled"), "weights": str(tmp_path / "pre"), "output": str(tmp_path / "fine")}
    for settings, words in (
        ({"plan": {"crop": [20, 24, 24]}}, "plan.crop .* is not a multiple of plan.region"),
        ({"network": {"architecture": "segresnet"}}, "the weights in .* are of unet"),
        ({"network": {"features": [8, 16]}}, "none of its 19 tensors fits the encoder"),
    ):
        with pytest.raises(HybridMIMLib.HybridMIMError, match=words):
            HybridMIMLib.finetune(**call, **settings)
    with pytest.raises(HybridMIMLib.HybridMIMError, match="no run folder of a finished pre-training"):
        HybridMIMLib.finetune(**{**call, "weights": str(tmp_path)})


def test_contrast_without_dropout_is_refused(blobs: Path, tmp_path: Path) -> None:
    settings = {**TINY, "network": {"features": [4, 8], "dropout": 0.0}}
    with pytest.raises(HybridMIMLib.HybridMIMError, match="network.dropout is 0"):
        HybridMIMLib.pretrain(unlabelled=str(blobs / "unlabelled"), output=str(tmp_path / "pre"), **settings)


def test_a_path_that_the_terminal_cannot_print_does_not_end_a_finished_job(blobs: Path, unicode_folder: Path) -> None:
    said = hybridmim(
        "prepare", "--unlabelled", blobs / "unlabelled", "--output", unicode_folder / "p", *tiny_options(),
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert said.returncode == 0, said.stderr


@pytest.mark.parametrize("text", ["null", "~", "#3 liver", "&a", "[a]", "1.5", "yes", "a: b", " x"])
def test_a_folder_called_null_is_a_folder(text: str) -> None:
    """What is nothing, a number or a list to a parser of YAML is a name here."""
    assert parse("train", [f"--labelled={text}", f"--name=x {text}"]).labelled == text
    assert parse("train", ["--labelled", "x", "--name", text.strip()]).name == text.strip()
