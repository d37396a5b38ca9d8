"""sigak (시각, "sight"): one toolkit for visual intelligence.

    import sigak

    run = sigak.train("resnet18", "pets/", pretrained="default", epochs=5)
    sigak.evaluate(run.checkpoint, "pets/")
    sigak.predict(run.checkpoint, "photo.jpg")

Nothing heavy is loaded before it is used: `import sigak` imports neither torch nor numpy.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sigak.data import Dataset
    from sigak.data import load as load_data
    from sigak.evaluation import evaluate
    from sigak.explanation import explain
    from sigak.exportation import export
    from sigak.lab import compare
    from sigak.models import create, names
    from sigak.prediction import load, predict
    from sigak.recipe import Recipe
    from sigak.session import Session
    from sigak.structures import Batch, Failure, Instances, Sample, SigakError
    from sigak.training import train

# public name -> (module, name there)
_PUBLIC = {
    "Batch": ("sigak.structures", "Batch"),
    "Dataset": ("sigak.data", "Dataset"),
    "Failure": ("sigak.structures", "Failure"),
    "Instances": ("sigak.structures", "Instances"),
    "Recipe": ("sigak.recipe", "Recipe"),
    "Sample": ("sigak.structures", "Sample"),
    "Session": ("sigak.session", "Session"),
    "SigakError": ("sigak.structures", "SigakError"),
    "compare": ("sigak.lab", "compare"),
    "create": ("sigak.models", "create"),
    "evaluate": ("sigak.evaluation", "evaluate"),
    "explain": ("sigak.explanation", "explain"),
    "export": ("sigak.exportation", "export"),
    "load": ("sigak.prediction", "load"),
    "load_data": ("sigak.data", "load"),
    "names": ("sigak.models", "names"),
    "predict": ("sigak.prediction", "predict"),
    "train": ("sigak.training", "train"),
}

__all__ = [
    "Batch",
    "Dataset",
    "Failure",
    "Instances",
    "Recipe",
    "Sample",
    "Session",
    "SigakError",
    "compare",
    "create",
    "evaluate",
    "explain",
    "export",
    "load",
    "load_data",
    "names",
    "predict",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("sigak")
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sigak' has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
