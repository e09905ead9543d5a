"""Slicer module: folders of scans become a trained model.

Thin on purpose: what happens is in ``HybridMIMLib.slicer_side``. Heavy work runs in a process of its own, which goes
on when Slicer closes.
"""

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
            "HybridMIM Segmentation. For research, not for clinical use.<br>"
            'Read on: <a href="{pages}/tutorial.md">tutorial</a>, <a href="{pages}/glossary.md">glossary</a>.'
        ).format(pages=PAGES)
        parent.acknowledgementText = _(
            "An independent implementation of HybridMIM (Xing et al., arXiv:2303.10333) and of masked image "
            "modelling for 3D medical images (Chen et al., arXiv:2204.11716)."
        )
        # Slicer's module Sample Data may not be loaded before.
        slicer.app.connect("startupCompleted()", registerSampleData)


def registerSampleData():
    """Show the data to try the module with in Slicer's module Sample Data."""
    from HybridMIMLib.slicer_side.sample_data import register

    register()


@parameterNodeWrapper
class HybridMIMTrainingParameterNode:
    """What is saved with the scene.

    The folders are text and not Path: Slicer shows an empty Path as ".", which is a folder that exists.

    unlabelledFolder, labelledFolder: of scans.
    plan: what is chosen in the section Plan, in JSON.
    startFrom: folder of the pre-training that a fine-tuning starts from.
    """

    unlabelledFolder: str
    labelledFolder: str
    plan: str
    startFrom: str


class HybridMIMTrainingWidget(ScriptedLoadableModuleWidget):
    """The panel; what it does is in HybridMIMLib.slicer_side.panels."""

    def __init__(self, parent=None):
        super().__init__(parent)
        self.content = None

    def setup(self):
        super().setup()
        from HybridMIMLib.slicer_side.panels.parts import TRAINING, load_parts
        from HybridMIMLib.slicer_side.panels.training_panel import TrainingPanel

        self.logic = HybridMIMTrainingLogic()
        widget = slicer.util.loadUI(self.resourcePath("UI/HybridMIMTraining.ui"))
        load_parts(widget, self.resourcePath("UI"), TRAINING)
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.content = TrainingPanel(self.ui, self.logic)

    def enter(self):
        if self.content:
            self.content.enter()

    def getSample(self, identifier):
        """Get a set of sample data, because its button was pressed in Slicer's module Sample Data."""
        if self.content:
            self.content.get_sample(identifier)

    def cleanup(self):
        """The module is reloaded, or Slicer quits: a run goes on, and is found again."""
        if self.content:
            self.content.close()


class HybridMIMTrainingLogic(ScriptedLoadableModuleLogic):
    """What the panel does, for the Python console and other modules too.

    >>> logic = slicer.util.getModuleLogic("HybridMIMTraining")
    >>> run = logic.pretrain("/data/scans", pretraining={"steps": 2000})
    >>> run.wait(log=print)
    >>> run = logic.finetune("/data/cases", weights=run, name="Liver")
    >>> run.wait(progress=lambda fraction, text: print(text))
    >>> run.model

    Each run is a HybridMIMLib.slicer_side.training_run.TrainingRun, with wait(), pause(), resume(), cancel() and
    events(); it goes on when Slicer closes. Settings are those of the command line, sections as dictionaries. The
    same without Slicer's window is in HybridMIMLib.slicer_side.training_run.
    """

    def getParameterNode(self):
        return HybridMIMTrainingParameterNode(super().getParameterNode())

    def pretrain(self, unlabelled, folder=None, **settings):
        """Learn from a folder of scans without labels; returns the run, which is at work."""
        from HybridMIMLib.slicer_side.training_run import start_pretraining

        return start_pretraining(unlabelled, folder=folder, **settings)

    def finetune(self, labelled, weights=None, folder=None, **settings):
        """Learn to segment from a folder of labelled scans; weights: a pre-training, as a run or as its folder."""
        from HybridMIMLib.slicer_side.training_run import start_finetuning

        return start_finetuning(labelled, weights=weights, folder=folder, **settings)

    def train(self, unlabelled=None, labelled=None, folder=None, **settings):
        """Pre-train, then fine-tune, in one run."""
        from HybridMIMLib.slicer_side.training_run import start_training

        return start_training(unlabelled, labelled, folder=folder, **settings)

    def study(self, unlabelled, labelled, folder=None, **settings):
        """See whether pre-training helps on these scans."""
        from HybridMIMLib.slicer_side.training_run import start_study

        return start_study(unlabelled, labelled, folder=folder, **settings)

    def attach(self, folder):
        """The run of a folder: followed where it is at work, continued where it was stopped."""
        from HybridMIMLib.slicer_side.training_run import continued

        return continued(folder)


class HybridMIMTrainingTest(ScriptedLoadableModuleTest):
    """The self-test that Slicer's button Reload and Test runs: the way of a user on sample data that is drawn here.

    It takes about a minute and keeps nothing; the scene is cleared. More tests are in Testing/Slicer.
    """

    def setUp(self):
        slicer.mrmlScene.Clear(0)

    tearDown = setUp

    def runTest(self, **kwargs):
        from HybridMIMLib.slicer_side.self_test import run_all

        run_all(self)

    def test_nothingStartsWithoutScans(self):
        from HybridMIMLib.slicer_side.self_test import refuse_without_scans

        refuse_without_scans(self, HybridMIMTrainingLogic())

    def test_sampleDataBecomesAModel(self):
        from HybridMIMLib.slicer_side.self_test import train_on_sample_data

        train_on_sample_data(self, "HybridMIMTraining")
