"""Loading modules, and what cannot be loaded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import slicer
from SlicerHost import Host


def _module(folder: Path, text: str, name: str = "Small") -> Path:
    file = folder / f"{name}.py"
    file.write_text(f"from slicer.ScriptedLoadableModule import *\n{text}", encoding="utf-8")
    return file


SMALL = "class Small(ScriptedLoadableModule):\n    pass\n"


def test_a_module_without_a_panel(host: Host, tmp_path: Path) -> None:
    host.load_module(_module(tmp_path, SMALL))
    assert slicer.util.modulePath("Small") == str(tmp_path / "Small.py")
    assert "Small" in slicer.util.moduleNames()
    assert slicer.util.getModule("Small") is slicer.modules.small
    assert slicer.modules.SmallInstance is slicer.modules.small.self()
    assert slicer.modules.small.categories == (), "a tuple: appending to it would be lost in Slicer"
    with pytest.raises(ValueError, match="SmallWidget"):
        host.open_module("Small")
    with pytest.raises(RuntimeError, match="Small"):
        slicer.util.getModuleWidget("Small")


def test_its_folder_is_a_path_of_python_until_slicer_quits(host: Host, tmp_path: Path) -> None:
    host.load_module(_module(tmp_path, SMALL))
    assert sys.path.count(str(tmp_path)) == 1
    host.close()
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("text", "error", "named"),
    [
        ("class Other(ScriptedLoadableModule): pass", AttributeError, "no class Small"),
        ("raise LookupError('broken')", LookupError, "broken"),
        (SMALL + "    def __init__(self, parent):\n        super().__init__(parent)\n        parent.titel = 'A'\n",
         AttributeError, "titel"),
        (SMALL + "    def __init__(self, parent):\n        super().__init__(parent)\n"
         "        parent.dependencies = ['Volumes', 'Markups']\n", LookupError, "depends on Markups"),
    ],
)  # fmt: skip
def test_a_module_that_slicer_would_not_load(
    host: Host, tmp_path: Path, text: str, error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        host.load_module(_module(tmp_path, text))
    assert "Small" not in sys.modules
    assert "Small" not in slicer.util.moduleNames()


def test_a_module_is_loaded_once_and_not_over_another(host: Host, tmp_path: Path) -> None:
    host.load_module(_module(tmp_path, SMALL))
    with pytest.raises(ValueError, match="Small is loaded already"):
        host.load_module(tmp_path / "Small.py")
    with pytest.raises(ImportError, match="json"):
        host.load_module(_module(tmp_path, SMALL, "json"))
    with pytest.raises(FileNotFoundError, match=r"Nothing\.py"):
        host.load_module(tmp_path / "Nothing.py")


def test_an_error_in_setup_reaches_the_caller(host: Host, tmp_path: Path) -> None:
    widget = (
        "class SmallWidget(ScriptedLoadableModuleWidget):\n    def setup(self):\n        raise LookupError('no')\n"
    )
    host.load_module(_module(tmp_path, SMALL + widget))
    with pytest.raises(LookupError, match="no"):
        host.open_module("Small")


def test_the_logic_of_a_panel_is_found_without_entering_it(host: Host, blur: Path) -> None:
    host.load_module(blur)
    logic = slicer.util.getModuleLogic("Blur")
    assert type(logic).__name__ == "BlurLogic"
    assert slicer.util.getModuleWidget("Blur").calls == ["setup"]
    assert slicer.modules.BlurWidget.logic is logic


def test_modules_of_slicers_own_have_logics_and_no_panels(host: Host) -> None:
    assert slicer.util.getModuleLogic("Segmentations") is slicer.modules.segmentations.logic()
    assert slicer.modules.volumes.logic().GetMRMLScene() is host.scene
    with pytest.raises(NotImplementedError, match="Volumes"):
        slicer.modules.volumes.widgetRepresentation()
    with pytest.raises(AttributeError, match="no cameras"):
        slicer.modules.cameras  # noqa: B018
    with pytest.raises(ValueError, match="Volumes"):
        host.unload("Volumes")


def test_the_manager_tells_what_comes_and_goes(host: Host, tmp_path: Path) -> None:
    heard: list[str] = []
    manager = slicer.app.moduleManager()
    for signal in ("moduleLoaded(QString)", "moduleAboutToBeUnloaded(QString)", "moduleUnloaded(QString)"):
        manager.connect(signal, heard.append)
    host.load_module(_module(tmp_path, SMALL))
    host.unload("Small")
    assert heard == ["Small"] * 3
    with pytest.raises(AttributeError, match="moduleGone"):
        manager.connect("moduleGone(QString)", heard.append)
