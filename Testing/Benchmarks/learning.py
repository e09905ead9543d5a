"""Whether pre-training learns: each head against its chance floor, on two real sets, within ten minutes on two cores.

``python Testing/Benchmarks/learning.py`` pre-trains the tiny U-Net with patches of 8 and regions of 16 voxels on
hippocampus MR and on head-and-neck CT, and prints one row a set: what the heads get right on crops that no step has
trained on, and the squared error of the hidden voxels as a share of what the true mean of each patch would give.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("HYBRIDMIM_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
COMMON = ("--network.size=tiny", "--plan.patch=[8,8,8]", "--plan.region=[16,16,16]")
SETS = {
    "hippocampus_mr": ("--pretraining.steps=800",),
    # The default crop of 96 x 64 x 96 would leave time for a few steps only.
    "headneck_ct": ("--pretraining.steps=800", "--plan.crop=[48,48,48]"),
}


def main() -> None:
    """Print a row for each set and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=sorted(SETS), default=sorted(SETS, reverse=True))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--keep", type=Path, help="folder for the runs, with their previews; default: a temporary one"
    )
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for name in chosen.sets:
            if not (SHARED / name).is_dir():
                print(f"{name}: skipped, the data set is not at {SHARED / name}")
                continue
            for seed in chosen.seeds:
                _learn(name, seed, (chosen.keep or Path(temporary)) / f"{name}-{seed}")


def _learn(name: str, seed: int, output: Path) -> None:
    options = (*COMMON, *SETS[name], f"--seed={seed}", f"--unlabelled={SHARED / name}", f"--output={output}")
    began = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "HybridMIMLib", "pretrain", *options], check=True, stdout=subprocess.DEVNULL
    )
    seconds = time.monotonic() - began
    found = json.loads((output / "result.json").read_text(encoding="utf-8"))["accuracies"]
    rows = ", ".join(f"{key} {value:.3f}" for key, value in found.items())
    print(f"{name}, seed {seed}: {seconds:.0f} s in all; {rows}", flush=True)


if __name__ == "__main__":
    main()
