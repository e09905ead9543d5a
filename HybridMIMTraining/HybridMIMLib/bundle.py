"""The part of a model package that plain MONAI runs: ``configs/inference.json``, written and never read by us.

``python -m monai.bundle run`` evaluates what begins with ``$``. These expressions say with torch, numpy and scipy
what this library does itself: resampling that keeps the faces of the scan where they are (MONAI's ``Spacingd`` keeps
the spacing to the last digit instead, and so shifts by up to half a voxel), the intensities of the body that become 0
and 1, the box around the body; and the way back, scores first and classes after.

Two things are left out, because MONAI has nothing like them: windows that hold nothing but air are computed, and a
clean-up of the label maps is not done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from HybridMIMLib.architectures import SEGRESNET, SWIN, U_NETS, VIT
from HybridMIMLib.data.body import MARGIN, air_level
from HybridMIMLib.data.classes import LabelClass
from HybridMIMLib.data.model_description import weights_files
from HybridMIMLib.data.normalisation import BODY_SHARE, HIGHEST_SIGMA, IQR_OF_NORMAL, LOWEST_SIGMA, MOST_VOXELS
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.data.resampling import LOW_PASS_FROM
from HybridMIMLib.networks.unet import LEAST_FOR_MONAI
from HybridMIMLib.networks.unetr import MONAI_TOKEN
from HybridMIMLib.settings.network import NetworkSettings

Config = dict[str, Any]

IMPORTS = (
    "$import glob",
    "$import os",
    "$import numpy",
    "$import torch",
    "$import scipy.ndimage as ndimage",
    "$import monai.data as monai_data",
    "$import safetensors.torch as safetensors_torch",
)
OVERLAP = 0.5
"""Of windows, as with the preset balanced."""
LEAVES_MONAI = {
    "unetr": f"MONAI's UNETR has tokens of {MONAI_TOKEN} voxels alone",
    "unet": f"MONAI's U-Net has {LEAST_FOR_MONAI} stages at least",
}


def why_not_in_monai(settings: NetworkSettings) -> str:
    """Why a network is none of MONAI's stock classes, or nothing where it is one."""
    if settings.architecture == "unetr" and settings.token != MONAI_TOKEN:
        return LEAVES_MONAI["unetr"]
    if settings.architecture in U_NETS and len(settings.features or ()) < LEAST_FOR_MONAI:
        return LEAVES_MONAI["unet"]
    return ""


def inference_config(
    settings: NetworkSettings,
    plan: Plan,
    classes: Sequence[LabelClass],
    overlapping: bool = False,
    members: int = 1,
) -> Config:
    """What ``python -m monai.bundle run`` does with a model.

    Args:
        settings: of the network, one of MONAI's (:func:`why_not_in_monai`).
        plan: how scans are prepared.
        classes: what the outputs mean.
        overlapping: one output a class, and none for the background.
        members: networks of this kind whose scores are averaged.
    """
    outputs = len(classes) + (not overlapping)
    network = network_config(settings, plan, outputs)
    return {
        "imports": list(IMPORTS),
        "bundle_root": ".",
        "weights": _weights_of(members),
        "dataset_dir": "scans",
        "output_dir": "segmented",
        "datalist": "$sorted(glob.glob(os.path.join(@dataset_dir, '*.nii')) "
        "+ glob.glob(os.path.join(@dataset_dir, '*.nii.gz')))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        **(_one(network) if members == 1 else _several(network, members)),
        **_expressions(plan),
        "preprocessing": {"_target_": "Compose", "transforms": _before(plan)},
        "dataset": {
            "_target_": "Dataset",
            "data": "$[{'image': scan} for scan in @datalist]",
            "transform": "@preprocessing",
        },
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": list(plan.crop),
            "sw_batch_size": 1,
            "overlap": OVERLAP,
            "mode": "gaussian",
            "padding_mode": "constant",
            "cval": 0.0,
        },
        "postprocessing": {"_target_": "Compose", "transforms": _after(classes, overlapping, members)},
        "evaluator": {
            "_target_": "SupervisedEvaluator" if members == 1 else "EnsembleEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            **_evaluated(members),
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "amp": False,
        },
        "initialize": [_loading(members)],
        "run": ["$@evaluator.run()"],
    }


def _weights_of(members: int) -> str:
    """The file of weights, or a list of them."""
    files = [f"os.path.join(@bundle_root, '{file.parent}', '{file.name}')" for file in weights_files(members)]
    return f"${files[0]}" if members == 1 else f"$[{', '.join(files)}]"


def _one(network: Config) -> Config:
    return {"network_def": network, "network": "$@network_def.to(@device)"}


def _several(network: Config, members: int) -> Config:
    return {
        "network_defs": [dict(network) for _ in range(members)],
        "networks": "$[one.to(@device) for one in @network_defs]",
    }


def _loading(members: int) -> str:
    """Strict, and it knows that DynUNet has each block twice: nothing is left at its initial value."""
    if members == 1:
        return "$safetensors_torch.load_model(@network_def, @weights)"
    return "$[safetensors_torch.load_model(one, file) for one, file in zip(@network_defs, @weights)]"


def _evaluated(members: int) -> Config:
    """What the evaluator runs; of several networks it keeps the scores of each, of the whole scan."""
    if members == 1:
        return {"network": "@network"}
    return {"networks": "@networks", "pred_keys": _keys(members)}


def _keys(members: int) -> list[str]:
    return [f"pred_{number}" for number in range(1, members + 1)]


def _mean(members: int) -> list[Config]:
    """The mean of the scores, as :class:`~HybridMIMLib.networks.ensemble.Ensemble` has it, window by window."""
    if members == 1:
        return []
    return [{"_target_": "MeanEnsembled", "keys": _keys(members), "output_key": "pred"}]


def network_config(settings: NetworkSettings, plan: Plan, outputs: int) -> Config:
    """MONAI's class with its arguments."""
    common: Config = {"in_channels": plan.channels, "out_channels": outputs}
    if settings.architecture in U_NETS:
        assert settings.features and settings.strides, "the settings are not settled"
        return {
            "_target_": "DynUNet",
            "spatial_dims": 3,
            **common,
            "kernel_size": [3] * len(settings.features),
            "strides": settings.strides,
            "upsample_kernel_size": settings.strides[1:],
            "filters": settings.features,
            "res_block": settings.architecture == "resunet",
        }
    if settings.architecture == "swinunetr":
        swin = SWIN[settings.size]
        return {
            "_target_": "SwinUNETR",
            **common,
            "feature_size": swin.features,
            "depths": list(swin.depths),
            "num_heads": list(swin.heads),
            "window_size": settings.window,
        }
    if settings.architecture == "unetr":
        vit = VIT[settings.size]
        return {
            "_target_": "UNETR",
            **common,
            "img_size": list(plan.crop),
            "feature_size": vit.features,
            "hidden_size": vit.width,
            "mlp_dim": 4 * vit.width,
            "num_heads": vit.heads,
        }
    size = SEGRESNET[settings.size]
    return {
        "_target_": "SegResNet",
        "spatial_dims": 3,
        **common,
        "init_filters": size.filters,
        "blocks_down": list(size.blocks),
        "blocks_up": [1] * (len(size.blocks) - 1),
    }


def _before(plan: Plan) -> list[Config]:
    """From a file to what the windows look at."""
    return [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        {"_target_": "EnsureTyped", "keys": "image", "dtype": "$torch.float32"},
        {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
        # For a dictionary, because the inverse of MONAI's Lambdad does not call its inv_func.
        {
            "_target_": "Lambda",
            "func": "$lambda data: {**data, 'image': @to_plan(data['image'])}",
            "inv_func": "$lambda data: {**data, 'image': @from_plan(data['image'])}",
        },
        _normalise(plan),
        {
            "_target_": "CropForegroundd",
            "keys": "image",
            "source_key": "image",
            # Its corners; CropForegroundd takes the box around what is selected.
            "select_fn": "@body_box",
        },
    ]


def _after(classes: Sequence[LabelClass], overlapping: bool, members: int) -> list[Config]:
    """From scores to a label map on the scan's own grid."""
    labels = [one.label for one in classes]
    dtype = "$numpy.uint8" if max(labels) < 256 else "$numpy.uint16"
    # Where classes overlap, the last of those that hold a voxel.
    last = "$lambda x: ((x > 0) * torch.arange(1, len(x) + 1)[:, None, None, None].to(x)).amax(0, keepdim=True)"
    choose = (
        {"_target_": "Lambdad", "keys": "pred", "func": last}
        if overlapping
        else {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}
    )
    return [
        *_mean(members),
        {
            "_target_": "Invertd",
            "keys": "pred",
            "transform": "@preprocessing",
            "orig_keys": "image",
            "nearest_interp": False,
            "to_tensor": True,
            "device": "cpu",
        },
        choose,
        {
            "_target_": "MapLabelValued",
            "keys": "pred",
            "orig_labels": list(range(len(labels) + 1)),
            "target_labels": [0, *labels],
            "dtype": dtype,
        },
        {
            "_target_": "SaveImaged",
            "keys": "pred",
            "output_dir": "@output_dir",
            "output_postfix": "seg",
            "output_ext": ".nii.gz",
            "output_dtype": dtype,
            "resample": False,
            "separate_folder": False,
        },
    ]


def _normalise(plan: Plan) -> Config:
    """Intensities to 0 … 1, see :mod:`HybridMIMLib.data.normalisation`."""
    if plan.normalisation == "window":
        low, high = plan.window
        return {
            "_target_": "ScaleIntensityRanged",
            "keys": "image",
            "a_min": low,
            "a_max": high,
            "b_min": 0.0,
            "b_max": 1.0,
            "clip": True,
        }
    return {
        "_target_": "Lambda",
        "func": "$lambda data: {**data, 'image': @normalised(data['image'])}",
    }


def _expressions(plan: Plan) -> Mapping[str, str]:
    """Named expressions; each is a function, and those that come later make use of those before."""
    ranges = {} if plan.normalisation == "window" else _ranges(plan)
    return {
        # Voxels along each axis at the plan's spacing: the same box of space, as nearly as whole voxels allow.
        "plan_shape": "$lambda x: [int(n) for n in numpy.maximum(numpy.round(numpy.multiply(x.shape[1:], "
        "numpy.linalg.norm(numpy.asarray(x.affine)[:3, :3], axis=0)) "
        f"/ {list(plan.spacing)}), 1)]",
        # A Gaussian along the axes that shrink much, so that what is too fine for the new grid is gone.
        "low_pass": "$lambda x, shape: ndimage.gaussian_filter(x, [0.0] + [n / m / 2 "
        f"if n / m > {LOW_PASS_FROM} else 0.0 for n, m in zip(x.shape[1:], shape)], mode='nearest', truncate=4.0)",
        # Linear, the outer faces of the volume where they were.
        "resize": "$lambda x, shape: torch.nn.functional.interpolate(x[None], shape, mode='trilinear', "
        "align_corners=False)[0]",
        "remade": "$lambda values, x: monai_data.MetaTensor(values, meta=x.meta, "
        "applied_operations=x.applied_operations)",
        # The shape goes along in the meta data, for the way back.
        "to_plan": "$lambda x: (x.meta.update(shape_before_plan=torch.tensor(x.shape[1:])), @remade(@resize("
        "torch.from_numpy(@low_pass(x.as_tensor().numpy(), @plan_shape(x))), @plan_shape(x)), x))[1]",
        "from_plan": "$lambda x: @remade(@resize(x.as_tensor(), [int(n) for n in x.meta['shape_before_plan']]), x)",
        # Where there is nothing but air, all of it.
        "is_body": f"$lambda x: (lambda there: there | ~there.any())(x.as_tensor() > {air_level(plan)!r})",
        # First voxel and size along an axis: with a margin, and as large as a window where the scan is.
        "span": f"$lambda there, window: (lambda first, stop: @grown(first, stop - first, len(there), window))("
        f"max(int(there.nonzero()[0]) - {MARGIN}, 0), min(int(there.nonzero()[-1]) + 1 + {MARGIN}, len(there)))",
        "grown": "$lambda first, size, total, window: (lambda n: (min(max(first - (n - size) // 2, 0), total - n), "
        "n))(max(size, min(window, total)))",
        "inside": "$lambda there, window: (lambda first, size: (torch.arange(len(there)) >= first) "
        "& (torch.arange(len(there)) < first + size))(*@span(there, window))",
        "box": "$lambda solid: @inside(solid.any(2).any(1), "
        f"{plan.crop[0]})[:, None, None] & @inside(solid.any(2).any(0), {plan.crop[1]})[:, None] "
        f"& @inside(solid.any(1).any(0), {plan.crop[2]})",
        "body_box": "$lambda x: @box(@is_body(x).any(0))[None]",
        **ranges,
    }


def _ranges(plan: Plan) -> Mapping[str, str]:
    """The intensities of each channel that become 0 and 1."""
    return {
        "ends": "$lambda v: (lambda low, high: (low, high) if low != high else (v.min(), v.max()))"
        "(*numpy.percentile(v, (0.5, 99.5)))",
        "useful_range": "$lambda c: (lambda low, high: (low, high if low < high else low + max(abs(low), 1.0)))"
        "(*[float(end) for end in @ends(c)])",
        "thinned": "$lambda c: c[(slice(None, None, int(numpy.ceil((c.size / "
        f"{MOST_VOXELS}) ** (1 / 3)))),) * 3].ravel()",
        "body": f"$lambda v: (lambda low, high: v[v > low + {BODY_SHARE} * (high - low)] if low < high else v)"
        "(*@ends(v))",
        "sigmas": f"$lambda lower, median, upper: (median + {LOWEST_SIGMA} * (upper - lower) / {IQR_OF_NORMAL}, "
        f"median + {HIGHEST_SIGMA} * (upper - lower) / {IQR_OF_NORMAL})",
        "robust_range": "$lambda c: (lambda low, high: (low, high) if numpy.float32(low) < numpy.float32(high) "
        "else @useful_range(c))(*@sigmas(*[float(q) for q in numpy.percentile(@body(@thinned(c)), (25, 50, 75))]))",
        "scaled": "$lambda c, low, high: numpy.clip((c - numpy.float32(low)) / (numpy.float32(high) - "
        "numpy.float32(low)), 0, 1)",
        "normalised": "$lambda x: @remade(torch.from_numpy(numpy.stack([@scaled(c, *@"
        + ("robust_range" if plan.normalisation == "zscore" else "useful_range")
        + "(c)) for c in x.as_tensor().numpy()])), x)",
    }
