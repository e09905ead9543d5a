"""A model package whose answer is known, for tests: ``python -m HybridMIMLib.known_model JOB.json``.

Nothing is trained: the weights are written so that the class Bright is where a scan is brighter than its mean, which
shows where a result lies, and is no use for anything else. The job is a JSON object, and its folder gets
``result.json``. ::

    {"folder": "models/known", "name": "Known", "spacing": [10, 10, 10], "threshold": 0}

An error is one line on standard error, and the exit code 1.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.errors import SettingsError
from HybridMIMLib.files import read_json
from HybridMIMLib.window_jobs import work_off

if TYPE_CHECKING:
    from HybridMIMLib.networks import SegmentationNetwork

CLASSES = (LabelClass(3, "Bright", (0.9, 0.2, 0.1)), LabelClass(7, "Never", (0.1, 0.3, 0.9)))
"""What it finds, and what it never finds."""
SIDE = 32
"""Voxels of its window; it holds for a scan that fits into one, for each window has a mean of its own."""

_JOIN = "upsamples.0.conv_block.conv1.conv.weight"
_FEATURES = (4, 8)


def save_known_model(
    folder: Path,
    name: str,
    *,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    threshold: float = 1.5,
    channels: int = 1,
    normalisation: str = "percentiles",
) -> Path:
    """Write the package.

    Args:
        folder: for it.
        name: of the model.
        spacing: mm, to which scans are brought; coarse ones bring a large scan into one window.
        threshold: how far above its mean a scan is bright, in standard deviations, roughly.
        channels: of a scan; the first counts.
        normalisation: of the plan.

    Returns:
        The folder.
    """
    from HybridMIMLib.architectures import settled
    from HybridMIMLib.data.plan import Plan
    from HybridMIMLib.model_package import ModelPackage
    from HybridMIMLib.networks import make_segmentation_network
    from HybridMIMLib.settings.network import NetworkSettings

    plan = Plan(channels, spacing, normalisation, (-1e3, 1e3), (SIDE,) * 3, (4, 4, 4), (8, 8, 8))
    settings = settled(NetworkSettings(features=list(_FEATURES)), plan.spacing)
    network = make_segmentation_network(settings, plan.channels, len(CLASSES), plan.crop).eval()
    _write_weights(network, threshold)
    provenance = {"labelled_scans": 4, "validation_dice": {"mean": 0.5}, "trained": "2026-01-02T03:04:05+00:00"}
    ModelPackage(network, settings, plan, CLASSES, provenance, name).save(folder)
    return folder


def _write_weights(network: SegmentationNetwork, threshold: float) -> None:
    """Each convolution hands its first channel on as it is, and the norms between them centre it."""
    import torch

    with torch.no_grad():
        for key, tensor in network.state_dict().items():
            if tensor.ndim == 5:
                tensor.zero_()
                # What joins has the upsampled channels first and the skip behind them.
                source = tensor.shape[1] // 2 if key.endswith(_JOIN) else 0
                if "transp_conv" not in key and "head" not in key:
                    tensor[0, source, 1, 1, 1] = 1
            elif "bias" in key:
                tensor.zero_()
        network.head.weight[1, 0] = 1
        assert network.head.bias is not None
        network.head.bias.copy_(torch.tensor([0.0, -threshold, -9.0]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the package that a job asks for; returns the exit code."""
    return work_off("known_model", _make, arguments)


def _make(file: Path) -> dict[str, Any]:
    try:
        job = read_json(file)
        a, b, c = map(float, job["spacing"])
        folder, name, threshold = Path(job["folder"]), str(job["name"]), float(job["threshold"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(f"{file}: is no job ({error})", cure="See the head of known_model.py.") from error
    return {"model": str(save_known_model(folder, name, spacing=(a, b, c), threshold=threshold))}


if __name__ == "__main__":
    sys.exit(main())
