"""What the scripts that make pictures of the panels have in common: the stand-in, a workspace, places."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from SlicerHost import Host, problems, start

REPOSITORY = Path(__file__).resolve().parents[2]
MODULES = ("HybridMIMTraining", "HybridMIMSegmentation")

_KEPT_IN = REPOSITORY / "Resources" / "Pictures"
_MOST_BYTES = 300_000
_WIDEST = 1050


@contextmanager
def slicer_at_work() -> Iterator[tuple[Host, Path]]:
    """The stand-in with both modules loaded, and an empty workspace, which is gone afterwards; tells of problems."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        workspace = Path(folder) / "HybridMIM"
        workspace.mkdir()
        os.environ["HYBRIDMIM_WORKSPACE"] = str(workspace)
        host = start()
        try:
            for name in MODULES:
                host.load_module(REPOSITORY / name / f"{name}.py")
            yield host, workspace
        finally:
            host.close()
    for one in problems.take():
        print(f"{one.kind}: {one.text}", file=sys.stderr)


class Show:
    """A panel, step by step, with a picture after each.

    Args:
        host: with the modules loaded.
        module: whose panel it is.
        prefix: how the names of the pictures begin.
    """

    def __init__(self, host: Host, module: str, prefix: str) -> None:
        self.host, self.prefix = host, prefix
        self.folder = REPOSITORY / "build" / "pictures"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.panel: Any = host.open_module(module)
        self.ui: Any = self.panel.ui
        self.longest = (0.0, "")

    def picture(self, name: str) -> None:
        """Of the panel as it is now."""
        print(self.host.picture(self.path(name)), flush=True)

    def path(self, name: str) -> Path:
        """Of a picture."""
        return self.folder / f"{self.prefix} {name}.png"

    def wait(self, condition: Callable[[], Any], seconds: float = 300) -> None:
        """Until the condition holds."""
        self.host.wait_until(condition, seconds, "the end")

    def watch_looks(self, jobs: Any) -> None:
        """Measure what each look of a ``JobPanel`` takes from now on, in processor time of the window's thread."""
        timer, look = jobs._timer, jobs._look

        def measured() -> None:
            before, begin = jobs.job.progress.phase, time.thread_time()
            look()
            took = time.thread_time() - begin
            self.longest = max(self.longest, (took, f"{before} to {jobs.job.progress.phase}"))

        timer.disconnect("timeout()")
        timer.connect("timeout()", measured)

    def tell_looks(self) -> None:
        """Print the longest look."""
        print(f"longest look at a job: {1000 * self.longest[0]:.0f} ms of processor time ({self.longest[1]})")

    def keep(self, kept: Mapping[str, str]) -> None:
        """Write pictures where the documentation finds them.

        Args:
            kept: what they are called there, by name.
        """
        for name, new_name in kept.items():
            target = _KEPT_IN / f"{new_name}.png"
            picture = Image.open(self.path(name)).convert("RGB")
            if picture.width > _WIDEST:
                # Views of scans and surfaces.
                height = round(picture.height * _WIDEST / picture.width)
                picture = picture.resize((_WIDEST, height), Image.Resampling.LANCZOS)
            else:
                # Few colours are enough for panels and charts.
                picture = picture.quantize(255)
            picture.save(target, optimize=True)
            size = target.stat().st_size
            assert size < _MOST_BYTES, f"{target} has {size} bytes"
            print(f"{target}: {size / 1000:.0f} kB")
