"""Recipes for sounds: core's methods on log-mel spectrograms (BYOL-A is ``byol``, Audio-MAE is ``mae``), HuBERT and
wav2vec 2.0 on sounds as they are."""

from partwhole.audio.sees import on_sounds
from partwhole.audio.waves import HuBERT, Wav2Vec2
from partwhole.core import catalog

TASKS = {
    "hubert": HuBERT,
    "wav2vec2": Wav2Vec2,
    **{name: on_sounds(kind) for name, kind in catalog.METHODS.items()},
}
