"""What an exported run says: its scripts for other machines, and its README; see :mod:`HybridMIMLib.exporting`."""

from __future__ import annotations

import HybridMIMLib
from HybridMIMLib.config import Run
from HybridMIMLib.distributed import COMMANDS as SHARED
from HybridMIMLib.runs import versions

RUN = "run"
"""The folder in which the run works."""

_PATHS = [
    "",
    "The scans were not copied: the machine has to see them under the paths that the lists, or `run.yaml`, name.",
    "Where they lie elsewhere, replace the beginning of the paths there before the first start.",
]


_TO_TYPE = {
    "workstation": ["On a workstation:", "", "    bash start.sh"],
    "several GPUs": [
        "On several GPUs of one machine (the number must divide the batch):",
        "",
        "    GPUS=2 bash torchrun.sh",
    ],
    "SLURM": ["Under SLURM, after a look at what submit.sh asks for:", "", "    sbatch submit.sh"],
}

_HERE = """cd "$(dirname "${{BASH_SOURCE[0]}}")"
export PYTHONPATH="$PWD/library${{PYTHONPATH:+:$PYTHONPATH}}" PYTHONUTF8=1
"""

_START = (
    """#!/bin/bash
# Starts the run in this folder, or goes on with it; Ctrl+C stops it. Options of the command may follow.
set -e
"""
    + _HERE
    + """exec "${{PYTHON:-python3}}" -m HybridMIMLib {command} --config run.yaml "$@"
"""
)

_TORCHRUN = (
    """#!/bin/bash
# The same on several GPUs of one machine: GPUS=4 bash torchrun.sh
set -e
"""
    + _HERE
    + """exec "${{PYTHON:-python3}}" -m torch.distributed.run --standalone --nproc_per_node "${{GPUS:-2}}" \\
    -m HybridMIMLib {command} --config run.yaml "$@"
"""
)

_SUBMIT_HEAD = """#!/bin/bash
# Under SLURM: cd into this folder, then: sbatch submit.sh. Submitted again, it goes on where it was stopped.
# What is asked for below is a first guess: set it as your cluster wants it, account and partition too.
#SBATCH --job-name=hybridmim-{command}
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --gres=gpu:1
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%j.txt
# Two minutes before the time is over it is asked to stop in order.
#SBATCH --signal=TERM@120
set -e
# SLURM runs a copy of this file from somewhere else.
cd "${{SLURM_SUBMIT_DIR:-$(dirname "${{BASH_SOURCE[0]}}")}}"
# Load modules, or activate the environment in which the packages are, here:
# source env/bin/activate
export PYTHONPATH="$PWD/library${{PYTHONPATH:+:$PYTHONPATH}}" PYTHONUTF8=1
"""

_SUBMIT_ALONE = """exec srun "${{PYTHON:-python3}}" -m HybridMIMLib {command} --config run.yaml "$@"
"""

_SUBMIT_SHARED = """# More GPUs, of one machine: --gres=gpu:4 above shares every batch out to four processes.
GPUS="${{SLURM_GPUS_ON_NODE:-1}}"
if [ "$GPUS" -gt 1 ]; then
    exec srun "${{PYTHON:-python3}}" -m torch.distributed.run --standalone --nproc_per_node "$GPUS" \\
        -m HybridMIMLib {command} --config run.yaml "$@"
fi
exec srun "${{PYTHON:-python3}}" -m HybridMIMLib {command} --config run.yaml "$@"
"""


def ways(command: str) -> list[tuple[str, str, str]]:
    """Kinds of machines, and the script for each: its name and its text.

    Args:
        command: pretrain, finetune, train or study.
    """
    ways = [("workstation", "start.sh", _START.format(command=command))]
    if command in SHARED:
        ways.append(("several GPUs", "torchrun.sh", _TORCHRUN.format(command=command)))
    submit = _SUBMIT_SHARED if command in SHARED else _SUBMIT_ALONE
    return [*ways, ("SLURM", "submit.sh", (_SUBMIT_HEAD + submit).format(command=command))]


def to_type(kind: str) -> str:
    """What to type on a kind of machine, in the exported folder."""
    return _TO_TYPE[kind][-1].strip()


def readme(command: str, there: Run, is_continued: bool, has_scans: bool) -> str:
    """What this folder is, and how to start, continue and bring back the run.

    Args:
        command: of the run.
        there: its settings on the other machine.
        is_continued: whether it began on this one.
        has_scans: whether the scans were copied.
    """
    verb = "is continued" if is_continued else "is made"
    scans = [
        f"- {name} scans: `{getattr(there, name)}`" for name in ("unlabelled", "labelled") if getattr(there, name)
    ]
    seen = [] if has_scans else _PATHS
    each = [_TO_TYPE[kind] for kind, _, _ in ways(command)]
    made_with = [f"- {name} {version}" for name, version in versions().items()]
    lines = [
        f"# A run of HybridMIM: {command}",
        "",
        f"In this folder a run {verb} on another machine. It can be moved and copied as a whole; nothing in it",
        "depends on where it lies.",
        "",
        *scans,
        *([f"- prepared scans: `{there.store}`"] if there.store else []),
        "- settings: `run.yaml`",
        *seen,
        "",
        "## What the machine needs",
        "",
        "Python 3.10 or later and these packages; the library itself is in the folder `library`.",
        "",
        "    python3 -m venv env",
        "    source env/bin/activate",
        "    pip install -r library/HybridMIMLib/requirements.txt",
        "",
        "For a graphics card, install the PyTorch that fits it first: https://pytorch.org/get-started/locally",
        "",
        "## Start, and continue",
        "",
        *[line for way in each for line in (*way, "")],
        "In any other shell, such as on Windows, set the variable PYTHONPATH to `library`, then in this folder:",
        "",
        f"    python -m HybridMIMLib {command} --config run.yaml",
        "",
        "The same command continues a run that was stopped or killed. A batch of 0 (`--pretraining.batch=0`,",
        "`--finetuning.batch=0`) suits the graphics card that is there.",
        "",
        "## Bring it back",
        "",
        f"Copy the folder `{RUN}`, or a .zip of this whole folder, to the first machine. In Slicer, in the module",
        "HybridMIM Training, choose it under Elsewhere and press Import. What is not finished can go on there.",
        "",
        "## Made with",
        "",
        f"- HybridMIM {HybridMIMLib.__version__}",
        *made_with,
        "",
        "For research, not for clinical use. Scans may hold what must not leave your institution: see to it before",
        "you copy this folder anywhere.",
    ]
    return "\n".join(lines) + "\n"
