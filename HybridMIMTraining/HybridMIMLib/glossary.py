"""The words of the method in plain language, for people who segment scans and do not train networks every day.

One place for all that explain them: the page Resources/Documentation/glossary.md is made of it (``make docs``), and
panels take their tooltips from it. No torch here.

    >>> meaning("mask")
    'The patches of a crop that are hidden from the network, which has to tell what is there.'
    >>> tooltip("patch").startswith("Patch: A small block of voxels")
    True
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Term:
    """A word and what it means.

    Attributes:
        name: as it is written in the middle of a sentence.
        meaning: in one or two sentences.
        settings: the settings that it has to do with, as the command line calls them.
    """

    name: str
    meaning: str
    settings: tuple[str, ...] = ()


_SCANS = (
    Term("scan", "One image of a patient, such as a CT or an MR. It may have several channels."),
    Term("channel", "One of several images of the same place in one scan, such as the T1 and T2 sequences of an MR."),
    Term("voxel", "One point of a scan: what a pixel is in a picture."),
    Term("spacing", "How far the voxels of a scan lie apart, in mm along each axis.", ("plan.spacing",)),
    Term(
        "grid",
        "Where the voxels of a scan lie in the patient: how many there are along each axis, their spacing, and how "
        "the axes are turned. A result comes back on the grid of its scan.",
    ),
    Term("layout", "How the files of a data set are named and sorted into folders. The usual ones are told at once."),
    Term("DICOM series", "The files, often one for each slice, in which a scanner stores one scan."),
    Term("case", "A scan together with its label map.", ("labelled",)),
    Term(
        "unlabelled scan",
        "A scan in which nobody has marked anything. Pre-training learns from these.",
        ("unlabelled",),
    ),
    Term("class", "A kind of structure to be found, such as liver. Each has a number, a name and a colour."),
    Term(
        "label map", "An image on the grid of a scan that holds the number of a class in each voxel; 0 is background."
    ),
    Term("segment", "A structure that was found in a scan, as Slicer shows it: with a name, a colour and a surface."),
    Term("segmentation", "All segments of a scan; also the work of finding them."),
    Term(
        "label region",
        "A group of classes that counts as one structure, and may hold another: in brain tumours the whole tumour "
        "holds the tumour core.",
        ("finetuning.target",),
    ),
)

_PREPARING = (
    Term(
        "plan",
        "How all scans are brought to one form before they are learnt from: spacing, intensities, and the sizes of "
        "crop, region and patch. It is derived from the scans, and can be changed.",
        ("plan",),
    ),
    Term(
        "normalisation",
        "Bringing the intensities of all scans to one scale, so that the same tissue has about the same numbers.",
        ("plan.normalisation", "plan.window"),
    ),
    Term(
        "prepared store",
        "A folder of scans in the form that the plan says, from which crops are read fast.",
        ("store",),
    ),
    Term(
        "augmentation",
        "Turning, scaling and varying crops a little, by chance, so that few scans teach as much as many.",
        ("finetuning.augment", "finetuning.flip_axes"),
    ),
    Term(
        "crop",
        "The block cut out of a scan that the network sees at once; a whole scan is too large.",
        ("plan.crop",),
    ),
    Term(
        "region",
        "A block inside a crop that is made of several patches. HybridMIM asks which patches of each are hidden.",
        ("plan.region", "pretraining.region_ratio"),
    ),
    Term(
        "patch", "A small block of voxels inside a crop, which is hidden as a whole or not at all.", ("plan.patch",)
    ),
)

_NETWORKS = (
    Term(
        "network",
        "The program with many adjustable numbers that learns: here an encoder and a decoder together.",
        ("network.architecture", "network.size"),
    ),
    Term("encoder", "The part of a network that looks at a crop and sums it up, coarser from stage to stage."),
    Term("decoder", "The part of a network that turns what the encoder saw into an answer for each voxel."),
    Term("bottleneck", "Where the encoder ends: the coarsest summary of a crop, with which the decoder begins."),
    Term(
        "weights",
        "The numbers in a network that training adjusts. Pre-training leaves a file of them, and fine-tuning starts "
        "from it.",
        ("weights", "partial_weights"),
    ),
    Term(
        "U-Net",
        "A network of convolutions that hands what each stage of the encoder saw to the decoder.",
        ("network.architecture",),
    ),
    Term(
        "transformer",
        "A network that compares every part of a crop with others, such as SwinUNETR and UNETR.",
        ("network.architecture",),
    ),
    Term(
        "token", "What a transformer takes as one unit: a small block of voxels.", ("network.token", "network.window")
    ),
    Term(
        "dropout",
        "Leaving out some channels by chance while training, so that the network does not lean on a few of them.",
        ("network.dropout", "finetuning.dropout"),
    ),
)

_LEARNING = (
    Term(
        "pre-training",
        "Learning from scans without labels, by questions that the scans answer themselves. It gives weights to "
        "start from, and no segmentation yet.",
        ("pretraining",),
    ),
    Term(
        "masked image modelling",
        "Pre-training by hiding parts of a scan and asking the network what is there. The MIM in HybridMIM.",
        ("pretraining.objective",),
    ),
    Term("objective", "The kind of question with which pre-training teaches.", ("pretraining.objective",)),
    Term("mask", "The patches of a crop that are hidden from the network, which has to tell what is there."),
    Term("mask ratio", "The share of the patches that is hidden.", ("pretraining.mask_ratio",)),
    Term(
        "hybridmim",
        "The objective that asks at three levels: what hidden voxels look like, which patches of a region are "
        "hidden, and which two crops are the same one.",
        ("pretraining.objective",),
    ),
    Term(
        "simmim",
        "The objective that asks for hidden patches, with something learnt in their place.",
        ("pretraining.objective",),
    ),
    Term(
        "mae",
        "The objective whose encoder computes the visible patches alone. It needs the network unetr.",
        ("pretraining.objective",),
    ),
    Term(
        "simclr",
        "The objective that asks whether two altered crops are of one place, without hiding anything.",
        ("pretraining.objective",),
    ),
    Term(
        "reconstruction",
        "What a network says is behind the mask. It may be blurred and the pre-training good all the same.",
        ("pretraining.reconstruction", "pretraining.target"),
    ),
    Term(
        "contrast",
        "Teaching that two looks at the same crop are alike, and those at different patients are not.",
        ("pretraining.contrast_weight",),
    ),
    Term(
        "fine-tuning",
        "Learning to segment from cases, starting from the weights of a pre-training, or from scratch.",
        ("finetuning",),
    ),
    Term("from scratch", "Training that starts from random weights, without pre-training."),
    Term(
        "step",
        "One adjustment of the weights, after a look at a few crops.",
        ("pretraining.steps", "finetuning.steps"),
    ),
    Term("batch", "The crops of one step.", ("pretraining.batch", "finetuning.batch")),
    Term(
        "learning rate",
        "How far one step moves the weights. Too large, and training goes wild; too small, and it takes for ever.",
        ("pretraining.learning_rate", "finetuning.learning_rate"),
    ),
    Term("loss", "How wrong the network is: the number that training makes smaller."),
    Term("seed", "The number from which every random choice follows. The same seed gives the same run.", ("seed",)),
    Term(
        "validation",
        "Looking, while training, at cases that are not learnt from. The weights that do best there are kept.",
        ("finetuning.validation_cases", "finetuning.validate_every"),
    ),
    Term(
        "fold",
        "One part of the cases in a cross-validation, on which the network is measured that did not learn from it.",
        ("finetuning.folds",),
    ),
    Term(
        "checkpoint",
        "The state of a run on the disk, from which it goes on after it was stopped.",
        ("pretraining.checkpoint_every",),
    ),
    Term(
        "run",
        "One training with all its files, in a folder of its own. A stopped run is continued in its folder.",
        ("output",),
    ),
)

_USING = (
    Term(
        "model package",
        "A trained model as a folder or a .zip: weights, classes, and all that is needed to use it.",
        ("model",),
    ),
    Term("ensemble", "Several models of a kind used as one: their answers are averaged.", ("models",)),
    Term(
        "sliding window",
        "Segmenting a scan in blocks that overlap, because all of it does not fit into the network at once.",
        ("inference.overlap", "inference.step"),
    ),
    Term("uncertainty", "How undecided a model is about a voxel, from 0 (sure) to 1.", ("inference.uncertainty",)),
    Term(
        "Dice",
        "How well two segmentations of a structure agree, by their volumes: 1 is the same, 0 is nothing in common.",
    ),
    Term(
        "HD95",
        "How far the surfaces of two segmentations lie apart in mm, leaving out the farthest 5 %. Smaller is better.",
    ),
    Term(
        "surface Dice",
        "The share of two surfaces that lie within a tolerance of each other, also called NSD. Larger is better.",
        ("evaluation.tolerance",),
    ),
    Term("reference", "A segmentation that is held to be right, with which a result is compared.", ("references",)),
    Term("device", "What computes: the processor (cpu) or a graphics card (cuda, mps).", ("device",)),
)

CHAPTERS = {
    "Scans and labels": _SCANS,
    "Preparing scans": _PREPARING,
    "Networks": _NETWORKS,
    "Learning": _LEARNING,
    "Using and judging a model": _USING,
}
"""The terms by what they are about, in an order in which they can be read."""

TERMS = {term.name: term for terms in CHAPTERS.values() for term in terms}


def meaning(name: str) -> str:
    """What a word means, in one or two sentences.

    Raises:
        KeyError: the glossary does not have it.
    """
    return TERMS[name].meaning


def words_of(setting: str) -> list[str]:
    """The words that a setting has to do with, the closest one first.

    >>> words_of("pretraining.mask_ratio"), words_of("plan.crop"), words_of("pretraining.objective")[0]
    (['mask ratio'], ['crop'], 'objective')
    """
    own = setting.rpartition(".")[2].replace("_", " ")
    return sorted((name for name, term in TERMS.items() if setting in term.settings), key=lambda name: name != own)


def tooltip(name: str) -> str:
    """The same for a tooltip, with the word in front."""
    return f"{name[0].upper()}{name[1:]}: {meaning(name)}"
