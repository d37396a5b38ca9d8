"""Augmentation of batches on the fly: different in every epoch, the same on every machine.

`Pipeline.parse("flip=h,rotate=15,zoom=0.1", size=(224, 224))` gives a pipeline; `pipeline(batch,
seed, epoch)` a changed batch. `HELP` says what every name means, `PRESETS` what none, light, medium
and strong stand for, `preview` draws a picture of it.
"""

from sigak.augment.draws import Draws
from sigak.augment.pipeline import Pipeline, Plan, preview
from sigak.augment.spec import HELP, PRESETS

__all__ = ["HELP", "PRESETS", "Draws", "Pipeline", "Plan", "preview"]
