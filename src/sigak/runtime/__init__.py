"""The engines a network runs on, behind one call: images (B, C, H, W) in [0, 1] -> raw output.

Evaluation, validation and prediction all run through here, in float32 unless another engine is
asked for, so that they cannot disagree. An engine for files of another kind is one file beside
these and one row in `files.FORMATS`.
"""

from sigak.runtime.devices import environment, pick_device, pick_precision, seed_step
from sigak.runtime.torch_engine import Engine, FusedEngine, TorchEngine

__all__ = [
    "Engine",
    "FusedEngine",
    "TorchEngine",
    "environment",
    "pick_device",
    "pick_precision",
    "seed_step",
]
