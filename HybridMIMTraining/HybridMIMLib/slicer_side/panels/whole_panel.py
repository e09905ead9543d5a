"""What both panels are: sections that are shown and enabled together."""

from __future__ import annotations


class WholePanel:
    """A panel whose sections, while they are shown, may ask for the same again."""

    _updating = False

    def update(self) -> None:
        """Show what the parameters have, and enable what can be done."""
        if self._updating:
            # Showing nodes and folders in lists changes parameters, which asks for the same again.
            return
        self._updating = True
        try:
            self._update()
        finally:
            self._updating = False

    def _update(self) -> None:
        raise NotImplementedError
