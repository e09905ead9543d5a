"""Slicer module: folders of scans become a trained model.

Thin on purpose: what happens is in ``HybridMIMLib.slicer_side``. Heavy work runs in a process of its own, which goes
on when Slicer closes.
"""

from typing import Annotated

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

MOST_STEPS = 1_000_000


class HybridMIMTraining(ScriptedLoadableModule):
    """What Slicer's list of modules shows."""

    def __init__(self, parent):
        super().__init__(parent)
        parent.title = _("HybridMIM Training")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = []
        parent.contributors = ["The HybridMIM contributors"]
        parent.helpText = _(
            "Trains a segmentation model on your own scans: learns from unlabelled ones by masked image modelling, "
            "then from a few labelled ones. The run goes on when Slicer is closed. The model is used in the module "
            "HybridMIM Segmentation. For research, not for clinical use."
        )
        parent.acknowledgementText = _(
            "An independent implementation of HybridMIM (Xing et al., arXiv:2303.10333) and of masked image "
            "modelling for 3D medical images (Chen et al., arXiv:2204.11716)."
        )


@parameterNodeWrapper
class HybridMIMTrainingParameterNode:
    """What is saved with the scene.

    The folders are text and not Path: Slicer shows an empty Path as ".", which is a folder that exists.
    """

    unlabelledFolder: str
    labelledFolder: str
    modelName: str
    pretrainingSteps: Annotated[int, WithinRange(1, MOST_STEPS)] = 2000
    finetuningSteps: Annotated[int, WithinRange(1, MOST_STEPS)] = 1000


class HybridMIMTrainingWidget(ScriptedLoadableModuleWidget):
    """The panel."""

    def setup(self):
        super().setup()
        from HybridMIMLib.slicer_side.model_table import ModelTable
        from HybridMIMLib.slicer_side.panel import JobPanel
        from HybridMIMLib.slicer_side.scene_parameters import SceneParameters

        self.logic = HybridMIMTrainingLogic()
        widget = slicer.util.loadUI(self.resourcePath("UI/HybridMIMTraining.ui"))
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.models = ModelTable(self.ui)
        self.panel = JobPanel(self.ui, on_end=self._onEnd, on_change=self._updateButtons)
        self.ui.startButton.connect("clicked(bool)", self.onStart)
        self.ui.useModelButton.connect("clicked(bool)", self.onUseModel)
        for pathLineEdit in self._folderWidgets().values():
            pathLineEdit.connect("currentPathChanged(QString)", self._onFolderChanged)
            # An emptied line tells this alone.
            pathLineEdit.connect("validInputChanged(bool)", self._onFolderChanged)
        self.parameters = SceneParameters(self.logic.getParameterNode, self.ui, self._showFolders, self._showFolders)
        self.parameters.bind()
        self._attach()

    def enter(self):
        self.models.show()
        self._attach()

    def exit(self):
        """Another module is shown; a run goes on, and the panel with it."""

    def cleanup(self):
        """The module is reloaded, or Slicer quits: a run goes on, and is found again."""
        self.panel.close(stop_job=False)
        self.parameters.close()

    def onStart(self):
        from HybridMIMLib.errors import HybridMIMError
        from HybridMIMLib.slicer_side.environment import ensure_packages

        # While packages are installed the button could be pressed once more.
        self.ui.startButton.enabled = False
        self.panel.say("")
        try:
            ensure_packages()
            self.panel.follow(self.logic.start(self._settings()))
            for pathLineEdit in self._folderWidgets().values():
                pathLineEdit.addCurrentPathToHistory()
        except HybridMIMError as error:
            self.panel.say(str(error), is_error=True)
        finally:
            self._updateButtons()

    def onUseModel(self):
        """Go to the other module with the model that is marked in the list."""
        folder = self.models.chosen
        slicer.util.selectModule("HybridMIMSegmentation")
        slicer.util.getModuleWidget("HybridMIMSegmentation").selectModel(folder)

    def _attach(self):
        """Follow a run that is at work: from before a reload, or from an earlier Slicer."""
        if not self.panel.busy:
            job = self.logic.runAtWork()
            if job:
                self.panel.follow(job)

    def _onEnd(self, job):
        text = self.logic.takeEnd(job)
        self.models.show(job.result.get("model"))
        return text

    def _folderWidgets(self):
        return {
            "unlabelledFolder": self.ui.unlabelledPathLineEdit,
            "labelledFolder": self.ui.labelledPathLineEdit,
        }

    def _onFolderChanged(self, pathOrValid):
        node = self.parameters.node
        if node:
            with slicer.util.NodeModify(node):
                for name, widget in self._folderWidgets().items():
                    setattr(node, name, widget.currentPath)

    def _showFolders(self):
        node = self.parameters.node
        for name, widget in self._folderWidgets().items() if node else ():
            if widget.currentPath != getattr(node, name):
                wasBlocked = widget.blockSignals(True)
                widget.currentPath = getattr(node, name)
                widget.blockSignals(wasBlocked)
        self._updateButtons()

    def _settings(self):
        from HybridMIMLib.slicer_side.training import TrainingSettings

        node = self.parameters.node
        return TrainingSettings(
            unlabelled=node.unlabelledFolder,
            labelled=node.labelledFolder,
            name=node.modelName,
            pretraining_steps=node.pretrainingSteps,
            finetuning_steps=node.finetuningSteps,
        )

    def _updateButtons(self):
        reason = self._settings().why_not() if self.parameters.node else _("The scene is being changed.")
        self.ui.startButton.enabled = not reason and not self.panel.busy
        self.ui.startButton.toolTip = reason or _("Train in a process of its own, which goes on when Slicer closes.")
        self.ui.hintLabel.text = reason
        self.ui.hintLabel.visible = bool(reason) and not self.panel.busy


class HybridMIMTrainingLogic(ScriptedLoadableModuleLogic):
    """What the panel does, for the Python console and other modules too.

    ``job = slicer.util.getModuleLogic("HybridMIMTraining").train(unlabelled=…, labelled=…, name=…)``, then
    ``job.wait()``; the same without Slicer's window is ``HybridMIMLib.slicer_side.training.Trainer``.
    """

    def __init__(self):
        super().__init__()
        from HybridMIMLib.slicer_side.training import Trainer

        self._trainer = Trainer()

    def getParameterNode(self):
        return HybridMIMTrainingParameterNode(super().getParameterNode())

    def train(self, **settings):
        """Start a run; the settings are the fields of HybridMIMLib.slicer_side.training.TrainingSettings."""
        from HybridMIMLib.slicer_side.training import TrainingSettings

        return self.start(TrainingSettings(**settings))

    def start(self, settings):
        return self._trainer.start(settings)

    def takeEnd(self, job):
        return self._trainer.take_end(job)

    def runAtWork(self):
        from HybridMIMLib.slicer_side.training import training_at_work

        return training_at_work()


class HybridMIMTrainingTest(ScriptedLoadableModuleTest):
    """The self-test that Slicer's button Reload and Test runs; the real tests are in Testing/Slicer."""

    def setUp(self):
        slicer.mrmlScene.Clear(0)

    def runTest(self, **kwargs):
        self.setUp()
        self.test_nothingStartsWithoutScans()

    def test_nothingStartsWithoutScans(self):
        from HybridMIMLib.errors import SettingsError

        with self.assertRaises(SettingsError):
            HybridMIMTrainingLogic().train(labelled="")
