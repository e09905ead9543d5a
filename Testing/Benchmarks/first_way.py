"""Time and Dice of the whole way, and the start of the command line: ``make bench``.

Writes nothing but what the demo writes, into a temporary folder. Each line of output is a row of README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("HYBRIDMIM_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))


def run(*arguments: str) -> float:
    """Seconds that a command took; ends the benchmark where it fails."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "HybridMIMLib", *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def help_seconds() -> float:
    """Median of nine starts of ``--help``, the command with the most settings."""
    return statistics.median(run("demo", "--help") for _ in range(9))


def demo(name: str, folder: Path, *options: str) -> None:
    """Run one demo and print its row."""
    output = folder / name
    seconds = run("demo", "--output", str(output), *options)
    result = json.loads((output / "result.json").read_text(encoding="utf-8"))
    classes = ", ".join(f"{key} {value:.3f}" for key, value in result["dice"].items())
    stages = ", ".join(f"{key} {value:.0f} s" for key, value in result["seconds"].items())
    print(f"{name}: {seconds:.0f} s in all ({stages}); Dice {classes}; accuracies {result['accuracies']}", flush=True)


def main() -> None:
    """Print every row, for each seed asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    seeds = parser.parse_args().seeds
    print(f"demo --help: {help_seconds():.2f} s", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for seed in seeds:
            demo(f"synthetic-seed-{seed}", Path(temporary), f"--seed={seed}")
            hippocampus = SHARED / "hippocampus_mr"
            if not hippocampus.is_dir():
                print(f"hippocampus: skipped, the data set is not at {hippocampus}")
                continue
            split = ("--split.unlabelled=100", "--split.labelled=20", "--split.unseen=36", f"--seed={seed}")
            demo(f"hippocampus-seed-{seed}", Path(temporary),
                 "--unlabelled", str(hippocampus), "--labelled", str(hippocampus), *split)  # fmt: skip


if __name__ == "__main__":
    main()
