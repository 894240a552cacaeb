"""Recipes for sounds: core's methods on spectrograms, HuBERT and wav2vec 2.0 on waveforms.

BYOL-A is ``byol`` and Audio-MAE is ``mae``, with views of sounds.
"""

from partwhole.audio.sees import on_sounds
from partwhole.audio.waves import HuBERT, Wav2Vec2
from partwhole.core import catalog

TASKS = {
    "hubert": HuBERT,
    "wav2vec2": Wav2Vec2,
    **{name: on_sounds(kind) for name, kind in catalog.METHODS.items()},
}
