"""Recipes for sounds: core's methods on log-mel spectrograms. BYOL-A is ``byol``, Audio-MAE is ``mae``."""

from partwhole.audio.sees import on_sounds
from partwhole.core import catalog

TASKS = {name: on_sounds(kind) for name, kind in catalog.METHODS.items()}
