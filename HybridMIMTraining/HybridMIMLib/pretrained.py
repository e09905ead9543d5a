"""What a pre-training leaves: weights of the backbone, and all that is needed to build it again.

Which parts were trained is part of it: a decoder that an objective never ran holds its initial weights, and is not
saved. Published checkpoints are read too; they bring neither network nor plan with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from HybridMIMLib.architectures import check_sizes, settled
from HybridMIMLib.checkpoints import own_names, read_checkpoint
from HybridMIMLib.config import Run, user_path
from HybridMIMLib.data.plan import Plan
from HybridMIMLib.errors import HybridMIMError, ModelError, SettingsError
from HybridMIMLib.networks.interface import EncoderDecoder
from HybridMIMLib.settings.network import NetworkSettings
from HybridMIMLib.settings.plan import PlanSettings
from HybridMIMLib.settings.pretraining import PretrainingSettings
from HybridMIMLib.weights import load_weights, save_weights

WEIGHTS_FILE = "pretrained.safetensors"
FORMAT = 1
_GIVEN_SIZES = ("spacing", "crop", "patch", "region")


@dataclass(frozen=True)
class Origin:
    """How the weights of a run came about.

    Attributes:
        network: settled settings of the network.
        plan: how its scans were prepared and cut; its crop and channels decide shapes of tensors.
        objective: settings of the pre-training.
        trained: parts that were trained, ``encoder`` and perhaps ``decoder``.
        scans: how many it was trained on.
    """

    network: NetworkSettings
    plan: Plan
    objective: PretrainingSettings
    trained: tuple[str, ...]
    scans: int


@dataclass(frozen=True)
class Pretrained:
    """Weights to start from.

    Attributes:
        path: of the file.
        tensors: by their names in the file.
        origin: of weights that a run made; None for a published checkpoint.
        beside: what else the file holds, which is not used.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    origin: Origin | None = None
    beside: list[str] = field(default_factory=list)

    @property
    def is_scratch(self) -> bool:
        """Whether nothing was learnt in these weights: a run without an objective left them."""
        return self.origin is not None and self.origin.objective.objective == "none"

    @classmethod
    def of(cls, run: Run) -> Pretrained | None:
        """The weights that a run names, as run folder or as file; None to start from scratch.

        Raises:
            ModelError: they cannot be used.
        """
        if run.weights is None:
            return None
        path = user_path(run.weights)
        if path.is_dir() and not (path / WEIGHTS_FILE).exists():
            raise ModelError(
                f"{path}: is no run folder of a finished pre-training",
                cure="Give the --output of a pretrain that has ended.",
            )
        return load_pretrained(path / WEIGHTS_FILE if path.is_dir() else path)

    def names_in(self, backbone: EncoderDecoder) -> dict[str, str]:
        """For names in the file the name that the network has for each; unknown ones are left out."""
        if self.origin is not None:
            own = backbone.state_dict()
            return {name: name for name in self.tensors if name in own}
        return own_names(self.tensors, backbone)

    def network_for(self, run: Run) -> NetworkSettings:
        """The network to begin with: as set, or that of the weights where nothing was set.

        Raises:
            SettingsError: another architecture was set.
        """
        if self.origin is None or run.network == NetworkSettings():
            return run.network if self.origin is None else self.origin.network
        own = self.origin.network
        if run.network.architecture != own.architecture:
            raise SettingsError(
                f"network.architecture is {run.network.architecture}, and the weights in {self.path} are of "
                f"{own.architecture}",
                cure=f"Leave out the settings of the network, or set network.architecture to {own.architecture}.",
            )
        return run.network

    def plan_for(self, run: Run) -> Plan | None:
        """The plan to follow: that of the weights, with what was set in its place; None to make one from the scans.

        Args:
            run: settings, with the network of :meth:`network_for`.

        Raises:
            SettingsError: the sizes do not fit each other or the network.
        """
        if self.origin is None:
            return None
        plan = replace(self.origin.plan, **_given(run.plan))
        check_sizes(settled(run.network, plan.spacing), plan.crop, plan.patch, plan.region)
        return plan


def save_pretrained(path: Path, backbone: EncoderDecoder, origin: Origin) -> None:
    """Write the parts of a backbone that were trained.

    Raises:
        DiskError: the file could not be written.
    """
    tensors = {
        name: tensor
        for name, tensor in backbone.state_dict().items()
        if ("encoder" if backbone.is_of_encoder(name) else "decoder") in origin.trained
    }
    description = {
        "format": FORMAT,
        "kind": "pretrained",
        "network": asdict(origin.network),
        "plan": origin.plan.to_json(),
        "objective": asdict(origin.objective),
        "trained": list(origin.trained),
        "scans": origin.scans,
    }
    save_weights(path, tensors, description)


def load_pretrained(path: Path) -> Pretrained:
    """Weights that :func:`save_pretrained` wrote, or a published checkpoint.

    Raises:
        ModelError: there are none, or they cannot be used.
    """
    if path.suffix != ".safetensors":
        checkpoint = read_checkpoint(path)
        return Pretrained(path, checkpoint.tensors, beside=checkpoint.beside)
    tensors, description = load_weights(path)
    return Pretrained(path, tensors, _origin(path, description))


def _origin(path: Path, description: Mapping[str, Any]) -> Origin:
    cure = "Give the run folder of a pre-training."
    if description.get("kind") != "pretrained":
        raise ModelError(f"{path}: does not hold weights of a pre-training", cure=cure)
    if description.get("format") != FORMAT:
        raise ModelError(
            f"{path}: was made by another version (format {description.get('format')}, not {FORMAT})",
            cure="Pre-train again, or use the version that made it.",
        )
    try:
        return Origin(
            NetworkSettings(**description["network"]),
            Plan.from_json(description["plan"]),
            PretrainingSettings(**description["objective"]),
            tuple(description["trained"]),
            int(description["scans"]),
        )
    except (LookupError, TypeError, ValueError, HybridMIMError) as error:
        raise ModelError(f"{path}: the description is damaged ({error})", cure=cure) from error


def _given(settings: PlanSettings) -> dict[str, Any]:
    given = {name: getattr(settings, name) for name in _GIVEN_SIZES}
    return {name: tuple(value) for name, value in given.items() if value is not None}
