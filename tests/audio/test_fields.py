"""No option is dead: each field of each task changes what is trained, is refused, or is told to change nothing."""

from dataclasses import fields, replace

import pytest

from partwhole.audio.mel import Mel
from partwhole.audio.network import Network
from partwhole.audio.recipe import odd
from partwhole.audio.sources import Source
from partwhole.audio.tasks import TASKS
from partwhole.audio.wave_sees import WaveNetwork
from partwhole.core import checkpoint
from partwhole.core.batches import equal
from partwhole.core.encoder import fresh
from partwhole.core.fit import fit
from partwhole.core.watch import Quiet

OTHER = {
    "seconds": 0.8, "policy": "byola", "batch": 3, "temperature": 0.5, "queue": 4, "momentum": 0.5, "prototypes": 6,
    "words": 4, "redundancy": 0.5, "weight": 0.5, "crops": 3, "chance": 0.1, "vocabulary": 6, "threshold": 0.01,
    "labels_per_class": 1, "start": 0.3, "span": 2, "units": 5, "layer": 1, "unmasked": 0.5, "groups": 1, "entries": 8,
    "distractors": 3,
}  # fmt: skip
MEL = {"rate": 6000, "bands": 20, "window": 0.03, "hop": 0.012, "low": 90.0, "high": 3500.0, "floor": 1e-2}
NETWORK = {"name": "vit", "width": 6, "blocks": 2, "segments": 2, "centre": "sound", "dim": 24, "depth": 2, "tall": 8,
           "wide": 4}  # fmt: skip
WAVE = {"dim": 24, "depth": 2, "channels": 6, "hop": 320}
SOURCE = {"longest": 0.4, "held_out": ("jane",), "limit": 3, "generate": 5, "seed": 3}
QUICK = ("byol", "mae", "hubert", "wav2vec2", "supervised")
SMALL = {"cnn": {"width": 4, "dim": 16}, "vit": {"dim": 16, "depth": 1}}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Digits by two speakers, named as FSDD's."""
    import soundfile
    from torch import Generator

    from partwhole.audio.generate import sound

    root = tmp_path_factory.mktemp("sounds")
    for i in range(12):
        draw = Generator().manual_seed(i)
        wave = sound(("ah", "bell")[i % 2], i % 3, 8000, draw)
        soundfile.write(root / f"{i % 2}_{('jane', 'joe')[i // 6]}_{10 + i}.wav", wave.numpy(), 8000)
    return root


def tiny(task, cache, **rest):
    usual = TASKS[task]()
    small = {"dim": 16, "depth": 1, "channels": 4, "hop": 160} if usual.network.name == "wave" else SMALL[
        usual.network.name
    ]  # fmt: skip
    options = {
        "network": replace(usual.network, **small), "mel": Mel(rate=8000, bands=16), "batch": 4,
        "source": Source(cache=cache, generate=8, generate_labelled=2),
        "fit": replace(usual.fit, steps=3, device="cpu", schedule="constant", warmup=0.0),
        **({"vocabulary": 8} if task == "beit" else {}),
        **({"units": 6} if task == "hubert" else {}),
    }  # fmt: skip
    return replace(usual, **{**options, **rest})


def outcome(recipe):
    """The first batch and the weights after the last step, one after the other."""
    run = recipe.build(watch=Quiet())
    yield next(run.stream())
    yield {name: value.clone() for name, value in run.method.state_dict().items()}  # training changes them in place
    yield dict(fit(replace(run, evaluate=lambda method: {}), recipe.fit, watch=Quiet()).state_dict())


def alike(a, b):
    """Whether recipe b gives what a gives, a recipe or its outcome."""
    try:
        return all(equal(x, y) for x, y in zip(a if isinstance(a, list) else outcome(a), outcome(b), strict=True))
    except RuntimeError:  # of tensors that cannot be compared
        return False


def told(recipe, field):
    """Whether it is said of a field that it changes nothing."""
    return any(f"--{field} changes nothing" in line for line in odd(recipe, recipe.prepare()))


def own(task):
    kind = TASKS[task]
    shared = {"data", "labelled", "source", "network", "mel", "fit", "teacher"}  # a teacher: see test_hubert.py
    return [f.name for f in fields(kind) if f.name not in shared | kind.incidental]


@pytest.mark.parametrize("task", [t if t in QUICK else pytest.param(t, marks=pytest.mark.slow) for t in TASKS])
def test_every_field_changes_what_is_trained_or_is_told_to_change_nothing(task, tmp_path):
    recipe, wrong = tiny(task, tmp_path / "cache"), []
    if task == "data2vec":  # whose momentum is where it ends after a third
        recipe = replace(recipe, fit=replace(recipe.fit, steps=6))
    seen = list(outcome(recipe))
    for name in own(task):
        value = OTHER.get(name)
        if name == "policy" and recipe.policy == value:
            value = "simclr"
        if name == "ratio":
            value = (0.4, 0.6) if isinstance(recipe.ratio, tuple) else 0.4
        if name == "init":
            checkpoint.save_encoder(fresh(recipe.encoder(), seed=9), value := tmp_path / "init")
        assert value is not None, f"say another value of {name}"
        changed = replace(recipe, **{name: value})
        if alike(seen, changed) != told(changed, name):
            wrong.append(name)
    assert wrong == []


@pytest.mark.parametrize("task", ["simclr", "hubert"])
@pytest.mark.parametrize("field", [f.name for f in fields(Mel)])
def test_every_field_of_the_spectrogram_does_or_is_told(task, field, tmp_path):
    plain = tiny(task, tmp_path, mel=Mel(rate=8000))
    changed = replace(plain, mel=replace(plain.mel, **{field: MEL[field]}))
    assert told(changed, f"mel.{field}") == alike(plain, changed)


@pytest.mark.parametrize("name", ["cnn", "vit"])
@pytest.mark.parametrize("field", [f.name for f in fields(Network)])
def test_every_field_of_the_network_does_or_is_told(name, field, tmp_path):
    plain = tiny("simclr", tmp_path, network=Network(name=name, **SMALL[name]))
    changed = replace(plain, network=replace(plain.network, **{field: "cnn" if field == name else NETWORK[field]}))
    if (field, name) == ("name", "vit"):
        changed = replace(plain, network=Network(name="cnn", **SMALL["cnn"]))
    assert told(changed, f"network.{field}") == alike(plain, changed)


@pytest.mark.parametrize("field", [f.name for f in fields(WaveNetwork)])
def test_every_field_of_the_network_over_waveforms_does(field, tmp_path):
    plain = tiny("wav2vec2", tmp_path)
    assert not alike(plain, replace(plain, network=replace(plain.network, **{field: WAVE[field]})))


@pytest.mark.parametrize("field", [f.name for f in fields(Source) if f.name not in Source.incidental])
def test_every_field_of_the_source_does(field, recorded, tmp_path):
    recipe = tiny("simclr", tmp_path, data=() if field in ("generate", "seed") else (recorded,))
    other = replace(recipe, source=replace(recipe.source, **{field: SOURCE[field]}))
    assert not alike(recipe, other)


def test_a_dead_field_would_be_found(tmp_path):
    recipe = tiny("simclr", tmp_path)
    assert alike(recipe, replace(recipe, network=replace(recipe.network, depth=2)))
