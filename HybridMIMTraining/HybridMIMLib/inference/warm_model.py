"""A model that stays loaded, and on its device, from one scan to the next."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from HybridMIMLib.data.model_store import locate
from HybridMIMLib.data.package_check import check_package
from HybridMIMLib.errors import ModelError
from HybridMIMLib.inference.clocked_engine import ClockedEngine, NetworkClock
from HybridMIMLib.inference.engines import choose_engine
from HybridMIMLib.inference.predictor import Predictor, make_predictor
from HybridMIMLib.model_package import ModelPackage, load_model
from HybridMIMLib.networks.device import empty_cache
from HybridMIMLib.settings.inference import InferenceSettings

Tell = Callable[[str], None]
_Stamp = tuple[tuple[str, int, int, int, int], ...]


class WarmModel:
    """The model that was loaded last.

    Loading it again costs nothing while its files are as they were. It is on a device from the first predictor that
    was made until :meth:`release`, and then again from the next.

    Attributes:
        package: the model, or None.
        path: where it was loaded from.
        clock: of its network.
    """

    def __init__(self) -> None:
        self.package: ModelPackage | None = None
        self.path: Path | None = None
        self.clock = NetworkClock()
        self._stamp: _Stamp = ()
        self._engine: ClockedEngine | None = None
        self._how: tuple[object, ...] = ()

    @property
    def device(self) -> str | None:
        """What holds the network ready, in words; None while nothing does."""
        return None if self._engine is None else self._engine.name

    def load(self, model: str | Path) -> ModelPackage:
        """The package of that path or name. If it cannot be loaded, none is loaded afterwards.

        Raises:
            ModelError: as :func:`~HybridMIMLib.model_package.load_model`.
        """
        try:
            path = locate(model)
            stamp = _stamp(path)
            if self.package is None or not stamp or (path, stamp) != (self.path, self._stamp):
                if self.package is None or not _holds(path, self.package.digest):
                    self.reset()
                    self.package = load_model(path)
                self.path, self._stamp = path, stamp
        except BaseException:
            # Nobody must take the model of before for this one.
            self.forget()
            raise
        return self.package

    @contextmanager
    def predictor(self, settings: InferenceSettings, device: str, tell: Tell) -> Iterator[Predictor]:
        """A predictor of the loaded model, to use inside the block.

        Its engine is that of the last one, where device and settings ask for the same.

        Raises:
            ModelError: no model is loaded.
            SettingsError: as :func:`~HybridMIMLib.inference.predictor.make_predictor`.
        """
        package = self.package or self._again()
        first = self._engine_for(package, settings, device, tell)
        predictor = make_predictor(package, settings, device, tell, first)
        self.clock.seconds()
        try:
            yield predictor
        finally:
            # Where memory ran out it is another one. What went to the CPU for one scan comes back for the next.
            last = predictor.engine
            assert isinstance(last, ClockedEngine)
            self._engine = last
            if last.device != first.device:
                self.release()

    def release(self) -> None:
        """Free the device; the package stays in the machine's memory."""
        engine, self._engine, self._how = self._engine, None, ()
        if engine is not None:
            device = engine.device
            try:
                engine.close()
            except Exception:
                # A device in an odd state keeps what is on it: nothing of this model can be trusted any more.
                self.package = None
            del engine
            gc.collect()
            empty_cache(device)

    def reset(self) -> None:
        """Free everything; the next predictor loads the model from its files again."""
        self.release()
        self.package, self._stamp = None, ()

    def forget(self) -> None:
        """Free everything, and have no model until the next is loaded."""
        self.reset()
        self.path = None

    def _again(self) -> ModelPackage:
        if self.path is None:
            raise ModelError("no model is loaded", cure="Load one first, or name it together with the scan.")
        return self.load(self.path)

    def _engine_for(
        self, package: ModelPackage, settings: InferenceSettings, device: str, tell: Tell
    ) -> ClockedEngine:
        how = (device, settings.engine, settings.precision, settings.window_batch)
        if self._engine is None or self._how != how:
            self.release()
            plan = package.plan
            engine = choose_engine(package.network, plan.channels, plan.crop, settings, device, tell)
            self._engine, self._how = ClockedEngine(engine, self.clock), how
        return self._engine


def _stamp(path: Path) -> _Stamp:
    """Changes whenever somebody writes to the package; empty where it cannot be looked at."""
    try:
        files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
        told = [(one, os.stat(one)) for one in files]
    except OSError:
        return ()
    return tuple((str(one), is_.st_size, is_.st_mtime_ns, is_.st_ctime_ns, is_.st_ino) for one, is_ in told)


def _holds(path: Path, digest: str) -> bool:
    """Whether the package there is the one of this digest, to the last byte."""
    try:
        return check_package(path).digest == digest
    except ModelError:
        return False
