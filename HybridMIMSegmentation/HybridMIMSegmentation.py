"""Slicer module: a volume and a trained model become a segmentation.

Thin on purpose: what happens is in ``HybridMIMLib.slicer_side``, which is imported inside functions, because Slicer
may load this file before the folder of the library is on its path.
"""

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
            "a process of its own, on the graphics card where there is one. For research, not for clinical use."
        )
        parent.acknowledgementText = _(
            "An independent implementation of HybridMIM (Xing et al., arXiv:2303.10333) and of masked image "
            "modelling for 3D medical images (Chen et al., arXiv:2204.11716)."
        )


@parameterNodeWrapper
class HybridMIMSegmentationParameterNode:
    """What is saved with the scene.

    inputVolume: to be segmented.
    model: folder of the model package.
    """

    inputVolume: slicer.vtkMRMLScalarVolumeNode
    model: str


class HybridMIMSegmentationWidget(ScriptedLoadableModuleWidget):
    """The panel."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self.logic = None

    def setup(self):
        super().setup()
        problem = libraryProblem()
        if problem:
            self._showProblem(problem)
            return
        from HybridMIMLib.slicer_side.model_chooser import ModelChooser
        from HybridMIMLib.slicer_side.panel import JobPanel
        from HybridMIMLib.slicer_side.scene_parameters import SceneParameters

        self.logic = HybridMIMSegmentationLogic()
        widget = slicer.util.loadUI(self.resourcePath("UI/HybridMIMSegmentation.ui"))
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.models = ModelChooser(self.ui, on_chosen=self.selectModel)
        self.panel = JobPanel(self.ui, on_end=lambda job: job.message, on_change=self._update)
        self.ui.applyButton.connect("clicked(bool)", self.onApply)
        self.parameters = SceneParameters(self.logic.getParameterNode, self.ui, self._onBound, self._update)
        self.parameters.bind()

    def enter(self):
        if self.logic:
            # Models may have come, and gone, while another module was shown.
            self._onBound()
            self._update()

    def exit(self):
        """Another module is shown; a job goes on, and the panel with it."""

    def cleanup(self):
        """The module is reloaded, or Slicer quits: nobody would take the result of a job."""
        if self.logic:
            self.panel.close(stop_job=True)
            self.parameters.close()

    def selectModel(self, folder):
        """Choose a model package; other modules and the console may call this."""
        self.parameters.node.model = str(folder)

    def onApply(self):
        from HybridMIMLib.errors import HybridMIMError
        from HybridMIMLib.slicer_side.environment import ensure_packages

        # While packages are installed the button could be pressed once more.
        self.ui.applyButton.enabled = False
        self.panel.say("")
        try:
            ensure_packages()
            node = self.parameters.node
            self.panel.follow(self.logic.start(node.inputVolume, node.model))
        except HybridMIMError as error:
            self.panel.say(str(error), is_error=True)
            self.models.show(self.parameters.node.model)
        finally:
            self._update()

    def _onBound(self):
        """The first volume and the newest model are chosen where none is."""
        node = self.parameters.node
        if not node.inputVolume:
            # As the list has them: without hidden ones, label maps and other kinds of volumes.
            node.inputVolume = self.ui.inputVolumeSelector.nodeFromIndex(0)
        self.models.show(node.model)
        node.model = self.models.chosen

    def _update(self):
        from HybridMIMLib.slicer_side.segmentation import why_not

        node, busy = self.parameters.node, self.panel.busy
        if node and node.model != self.models.chosen:
            self.models.show(node.model)
        reason = why_not(node.inputVolume if node else None, self.models.model) or self.models.problem
        self.ui.applyButton.enabled = not reason and not busy
        self.ui.applyButton.toolTip = reason or _("Segment the volume in a process of its own.")
        self.ui.hintLabel.text = reason
        self.ui.hintLabel.visible = bool(reason) and not busy

    def _showProblem(self, text):
        label = qt.QLabel(text)
        label.wordWrap = True
        label.objectName = "problemLabel"
        self.layout.addWidget(label)
        self.layout.addStretch(1)


class HybridMIMSegmentationLogic(ScriptedLoadableModuleLogic):
    """What the panel does, for the Python console and other modules too.

    ``slicer.util.getModuleLogic("HybridMIMSegmentation").segment(volumeNode, model)`` waits and returns the
    segmentation node; the same without Slicer's window is ``HybridMIMLib.slicer_side.segmentation.segment``.
    """

    def getParameterNode(self):
        return HybridMIMSegmentationParameterNode(super().getParameterNode())

    def segment(self, volumeNode, model, device="auto", onUpdate=None):
        from HybridMIMLib.slicer_side.segmentation import segment

        return segment(volumeNode, model, device, onUpdate)

    def start(self, volumeNode, model, device="auto"):
        """A job to be updated a few times a second; see HybridMIMLib.slicer_side.segmentation.SegmentationJob."""
        from HybridMIMLib.data.model_description import read_description
        from HybridMIMLib.slicer_side.segmentation import SegmentationJob

        return SegmentationJob(volumeNode, read_description(Path(model)), device)


class HybridMIMSegmentationTest(ScriptedLoadableModuleTest):
    """The self-test that Slicer's button Reload and Test runs; the real tests are in Testing/Slicer."""

    def setUp(self):
        slicer.mrmlScene.Clear(0)

    def runTest(self, **kwargs):
        self.setUp()
        self.test_nothingIsSegmentedWithoutAModel()

    def test_nothingIsSegmentedWithoutAModel(self):
        import numpy as np

        from HybridMIMLib.errors import ModelError

        volume = slicer.util.addVolumeFromArray(np.zeros((8, 8, 8), dtype=np.int16), name="Zeros")
        with self.assertRaises(ModelError):
            HybridMIMSegmentationLogic().segment(volume, Path(slicer.app.temporaryPath) / "no model")
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode"), 0)


def libraryProblem():
    """Why the library cannot be used, and the cure; empty if it can."""
    try:
        import HybridMIMLib.slicer_side.panel  # noqa: F401
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
