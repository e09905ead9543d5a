"""The line that says how long a segmentation will take, before Apply is pressed."""

from __future__ import annotations

from typing import Any

from slicer.i18n import tr as _

from HybridMIMLib.data.model_description import ModelDescription
from HybridMIMLib.slicer_side.expected_time import TimeTaken, in_words, ml_of, time_taken
from HybridMIMLib.slicer_side.inputs import Given, make_inputs
from HybridMIMLib.slicer_side.panels.later import Later
from HybridMIMLib.slicer_side.panels.widgets import say
from HybridMIMLib.slicer_side.warm_worker import warm_worker

_DEVICE = "auto"
"""What the panel asks for."""


class TimeLine:
    """Binds ``timeLabel``.

    Args:
        ui: the widgets, as ``slicer.util.childWidgetVariables`` gives them.

    Attributes:
        lookup: asks for what earlier segmentations took.
    """

    def __init__(self, ui: Any) -> None:
        self._ui, self.lookup = ui, Later()
        self._model: ModelDescription | None = None
        self._taken: TimeTaken | None = None
        self._shown: tuple[float, str, bool] | None = None

    def refresh(self) -> None:
        """A segmentation has ended: what it took counts from now on."""
        self._model = None

    def show(self, given: Given | None, model: ModelDescription | None, quality: str, has_region: bool) -> None:
        """Say what is known.

        Args:
            given: what would be segmented, which is known to be possible; None says nothing.
            quality: the preset that is chosen.
            has_region: whether only a part of it would be segmented.
        """
        self._shown = None
        if given is not None and model is not None:
            self._shown = ml_of(make_inputs(given, model)), quality, has_region
        if model is not None and model != self._model:
            self._model, self._taken = model, None
            self.lookup.ask(lambda: time_taken(model, _DEVICE), self._found)
        self._say()

    def close(self) -> None:
        """Nobody wants to know any more."""
        self.lookup.close()

    def _found(self, taken: TimeTaken | None) -> None:
        self._taken = taken
        self._say()

    def _say(self) -> None:
        ml, quality, has_region = self._shown or (0.0, "", False)
        seconds = self._taken.expected(ml, warm_worker().running) if self._taken is not None else {}
        if quality not in seconds:
            # Nothing is known, or nothing is to be begun.
            say(self._ui.timeLabel, "")
            return
        names = {"fast": _("fast"), "balanced": _("balanced"), "best": _("best")}
        text = _("At most {time} in quality {quality}") if has_region else _("About {time} in quality {quality}")
        time = in_words(seconds[quality])
        # Where a scan is small, they are all alike.
        others = [f"{names[name]}: {in_words(one)}" for name, one in seconds.items() if in_words(one) != time]
        compared = f" ({', '.join(others)})." if others else "."
        say(self._ui.timeLabel, text.format(time=time, quality=names[quality]) + compared)
