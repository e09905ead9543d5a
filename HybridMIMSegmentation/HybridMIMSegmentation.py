"""Slicer module: a volume and a trained model become a segmentation.

Thin on purpose: what happens is in ``HybridMIMLib.slicer_side``, which is imported inside functions, because Slicer
may load this file before the folder of the library is on its path.
"""

from enum import Enum
from pathlib import Path

import qt
import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

PAGES = "https://github.com/HybridMIM/SlicerHybridMIM/blob/main/Resources/Documentation"


class HybridMIMSegmentation(ScriptedLoadableModule):
    """What Slicer's list of modules shows."""

    def __init__(self, parent):
        super().__init__(parent)
        parent.title = _("HybridMIM Segmentation")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = []
        parent.contributors = ["The HybridMIM contributors"]
        parent.helpText = _(
            "Segments a volume with a model that was trained in the module HybridMIM Training. The work is done in "
            "a process of its own, on the graphics card where there is one. For research, not for clinical use.<br>"
            'Read on: <a href="{pages}/tutorial.md">tutorial</a>, <a href="{pages}/glossary.md">glossary</a>.'
        ).format(pages=PAGES)
        parent.acknowledgementText = _(
            "An independent implementation of HybridMIM (Xing et al., arXiv:2303.10333) and of masked image "
            "modelling for 3D medical images (Chen et al., arXiv:2204.11716)."
        )


class OutputMode(Enum):
    """What becomes of a result."""

    new = "new"
    replace = "replace"
    append = "append"

    def label(self):
        """As the list shows it."""
        return {
            "new": _("A new segmentation"),
            "replace": _("Replace the segments (keeps a backup)"),
            "append": _("Add to the segments"),
        }[self.value]


class Quality(Enum):
    """How much time is taken for a scan: the preset of the section inference."""

    fast = "fast"
    balanced = "balanced"
    best = "best"

    def label(self):
        """As the list shows it."""
        return {"fast": _("Fast"), "balanced": _("Balanced"), "best": _("Best")}[self.value]


@parameterNodeWrapper
class HybridMIMSegmentationParameterNode:
    """What is saved with the scene.

    inputVolume: to be segmented; the volumes of further channels are references of the node.
    wholeSequence: whether all items are segmented where the volume shows one of a sequence.
    model: folder of the model package.
    outputMode, outputSegmentation: where the result goes.
    quality: fast, balanced, best.
    region: only what lies in this box is segmented.
    reference: the result is compared with it.
    leftOut: names of the classes that are not kept, a list in JSON.
    resultSegmentation: shown in the section Result.
    """

    inputVolume: slicer.vtkMRMLScalarVolumeNode
    wholeSequence: bool = True
    model: str
    outputMode: OutputMode
    outputSegmentation: slicer.vtkMRMLSegmentationNode
    quality: Quality = Quality.balanced
    region: slicer.vtkMRMLMarkupsROINode
    reference: slicer.vtkMRMLSegmentationNode
    leftOut: str
    resultSegmentation: slicer.vtkMRMLSegmentationNode


class HybridMIMSegmentationWidget(ScriptedLoadableModuleWidget):
    """The panel; what it does is in HybridMIMLib.slicer_side.panels."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self.logic = None

    def setup(self):
        super().setup()
        problem = libraryProblem()
        if problem:
            self._showProblem(problem)
            return
        from HybridMIMLib.slicer_side.panels.parts import SEGMENTATION, load_parts
        from HybridMIMLib.slicer_side.panels.segmentation_panel import SegmentationPanel

        self.logic = HybridMIMSegmentationLogic()
        widget = slicer.util.loadUI(self.resourcePath("UI/HybridMIMSegmentation.ui"))
        load_parts(widget, self.resourcePath("UI"), SEGMENTATION)
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.content = SegmentationPanel(self.ui, self.logic)

    def enter(self):
        if self.logic:
            self.content.enter()

    def cleanup(self):
        if self.logic:
            self.content.close()

    def selectModel(self, folder):
        """Choose a model package, for other modules and the console."""
        self.content.select_model(folder)

    def _showProblem(self, text):
        label = qt.QLabel(text)
        label.wordWrap, label.objectName = True, "problemLabel"
        self.layout.addWidget(label)
        self.layout.addStretch(1)


class HybridMIMSegmentationLogic(ScriptedLoadableModuleLogic):
    """What the panel does, for the Python console and other modules too.

    >>> logic = slicer.util.getModuleLogic("HybridMIMSegmentation")
    >>> segmentationNode = logic.segment(volumeNode, model="hippocampus")
    >>> segmentationNode = logic.segment([t1Node, t2Node], "/models/brain", roiNode=box, onLog=print)

    The same without Slicer's window is ``HybridMIMLib.slicer_side.segmentation.segment``.
    """

    def getParameterNode(self):
        return HybridMIMSegmentationParameterNode(super().getParameterNode())

    def segment(
        self,
        volumeNode,
        model,
        device="auto",
        onUpdate=None,
        onLog=None,
        onProgress=None,
        isCancelled=None,
        inference=None,
        roiNode=None,
        **output,
    ):
        """Segment and wait; Slicer's window stays alive meanwhile.

        volumeNode: a volume, a list (one a channel) or a dictionary (by names of channels) of them, or a sequence.
        model: name of a model of this user, or the path of a model package.
        device: auto, cpu, cuda, cuda:1, mps.
        onUpdate(job), onLog(line), onProgress(fractionOrNone, text), isCancelled(): called while it works; it is
            stopped when isCancelled returns True.
        inference: settings of the section of that name, such as {"preset": "fast"}.
        All others: see start.

        Returns the segmentation node. What goes wrong is an exception with cause and cure; the scene is as it was.
        """
        from HybridMIMLib.slicer_side.environment import ensure_packages
        from HybridMIMLib.slicer_side.segmentation import segment

        ensure_packages()
        target = {"roi": roiNode, "output": self._output(**output)}
        callbacks = {"on_log": onLog, "on_progress": onProgress, "is_cancelled": isCancelled}
        return segment(volumeNode, model, device, onUpdate, inference=inference, **target, **callbacks)

    def start(self, volumeNode, model, device="auto", roiNode=None, inference=None, **output):
        """As segment, without waiting: a job whose update() is to be called a few times a second until it is False;
        see HybridMIMLib.slicer_side.segmentation.SegmentationJob.

        roiNode: only what lies in this box is segmented.
        outputSegmentationNode, outputMode: "replace" (default with a node; keeps a backup), "append" or "new".
        classes: names of the classes to keep; without: all.
        referenceNode: a segmentation to compare with; the table of volumes then has the Dice.
        """
        from HybridMIMLib.slicer_side.models import find_model
        from HybridMIMLib.slicer_side.segmentation import SegmentationJob

        return SegmentationJob(volumeNode, find_model(model), device, roiNode, self._output(**output), inference)

    def _output(self, outputSegmentationNode=None, outputMode=None, classes=None, referenceNode=None):
        from HybridMIMLib.slicer_side.segmentation import Output

        return Output.into(outputSegmentationNode, outputMode, classes, referenceNode)


class HybridMIMSegmentationTest(ScriptedLoadableModuleTest):
    """The self-test that Slicer's button Reload and Test runs: sample data, which is drawn here, is segmented.

    It takes about half a minute and keeps nothing; the scene is cleared. More tests are in Testing/Slicer.
    """

    def setUp(self):
        slicer.mrmlScene.Clear(0)

    tearDown = setUp

    def runTest(self, **kwargs):
        from HybridMIMLib.slicer_side.self_test import run_all

        run_all(self)

    def test_nothingIsSegmentedWithoutAModel(self):
        from HybridMIMLib.slicer_side.self_test import refuse_without_model

        refuse_without_model(self, HybridMIMSegmentationLogic())

    def test_aSampleScanIsSegmentedWhereItLies(self):
        from HybridMIMLib.slicer_side.self_test import segment_sample_data

        segment_sample_data(self, HybridMIMSegmentationLogic())


def libraryProblem():
    """Why the library cannot be used, and the cure; empty if it can."""
    try:
        import HybridMIMLib.slicer_side.panels  # noqa: F401
    except ImportError as error:
        if (error.name or "").split(".")[0] != "HybridMIMLib":
            raise
        folder = Path(__file__).resolve().parents[1] / "HybridMIMTraining"
        return _(
            "The library of HybridMIM was not found: it is in the folder of the module HybridMIM Training, which "
            "Slicer does not know. In the menu Edit > Application Settings > Modules, add this folder to the "
            "additional module paths, then restart Slicer:\n{folder}"
        ).format(folder=folder)
    return ""
