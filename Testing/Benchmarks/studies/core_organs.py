"""OpenKBP cases with their five core organs alone, as a list that ``study --labelled`` takes.

    python Testing/Benchmarks/studies/core_organs.py HEADNECK CORE

``HEADNECK`` holds ``images/``, ``labels_oar/`` and ``cases.json``; ``CORE`` gets label maps and ``cases.json``. Scans
are named where they lie, and not copied. A case with none of the organs is left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from HybridMIMLib.data.scans import read_label_map, write_label_map
from HybridMIMLib.files import read_json, write_json

CORE = ("Brainstem", "SpinalCord", "RightParotid", "LeftParotid", "Mandible")


def main() -> None:
    """Write the list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("headneck", type=Path)
    parser.add_argument("core", type=Path)
    chosen = parser.parse_args()
    print(f"{write_core(chosen.headneck, chosen.core)} cases in {chosen.core / 'cases.json'}")


def write_core(headneck: Path, core: Path) -> int:
    """Write label maps and list; returns how many cases there are."""
    described = read_json(headneck / "cases.json")
    labels = {name: int(label) for label, name in described["oar_labels"].items() if name in CORE}
    cases = []
    for name in described["cases"]:
        found = read_label_map(headneck / "labels_oar" / f"{name}.nii.gz")
        kept = np.where(np.isin(found.array, list(labels.values())), found.array, 0).astype(np.uint8)
        if not kept.any():
            continue
        target = core / "labels" / f"{name}.nii.gz"
        target.parent.mkdir(parents=True, exist_ok=True)
        write_label_map(target, kept, found.grid)
        image = (headneck / "images" / f"{name}.nii.gz").resolve()
        cases.append({"name": name, "image": str(image), "label": str(target.resolve())})
    names = {str(label): name for name, label in labels.items()}
    write_json(core / "cases.json", {"labels": names, "partially_labelled": True, "cases": cases})
    return len(cases)


if __name__ == "__main__":
    main()
