"""Every recipe on clips with sound trains, is measured, and leaves a page and both encoders."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from films import film

from partwhole.audio.mel import Mel
from partwhole.core.checkpoint import load_encoder, save_encoder
from partwhole.core.fit import fit
from partwhole.core.watch import Quiet
from partwhole.multimodal import finish
from partwhole.multimodal.measure import Pairs, belongs, chance, in_time, measure, recall
from partwhole.multimodal.samples import Source
from partwhole.multimodal.show import telling
from partwhole.multimodal.tasks import TASKS
from partwhole.multimodal.views import Seconds
from partwhole.video.readers import Frames


class Heard(Quiet):
    def __init__(self):
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def tiny(task, tmp_path, **rest):
    """The same recipe, small enough for a test."""
    recipe = TASKS[task]()
    options = {
        "source": Source(cache=tmp_path / "cache", generate=8, generate_test=6, frames=20, workers=1),
        "mel": Mel(rate=4_800, bands=16),
        "network": replace(recipe.network, width=0.125, dim=12, depth=1, patch=8),
        "hearing": replace(recipe.hearing, width=2, dim=8, segments=2),
        "width": 2,
        "size": 32,
        "seconds": 0.8,
        "frames": min(4, recipe.frames),
        "batch": 4,
        "fit": replace(recipe.fit, steps=3, log_every=1, device="cpu"),
        "measure": Pairs(draws=1, shifts=2, batch=4),
    }
    return replace(recipe, **{**options, **rest})


@pytest.mark.parametrize("task", TASKS)
def test_every_task_trains_three_steps_and_is_shown(task, tmp_path):
    recipe = tiny(task, tmp_path)
    run = recipe.build(watch=Quiet())
    before = [p.clone() for p in run.method.parameters()]
    method = fit(run, recipe.fit, tmp_path, watch=Quiet())
    assert all(p.isfinite().all() for p in method.parameters())
    assert sum(not torch.equal(a, b) for a, b in zip(before, method.parameters(), strict=True)) > len(before) // 2
    save_encoder(method.encoder, tmp_path)
    done = recipe.finish(load_encoder(tmp_path), tmp_path)
    page = done["report"].read_text()
    assert page.count("data:image/png") == 2
    assert page.count("data:audio/wav") == 4
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["chance"]["sound@1"] == pytest.approx(1 / 6)
    assert {"correspondence", "synchrony", "sound@1", "sound@5", "clip@1", "clip@5"} <= set(found["trained"])
    assert all(0 <= found["trained"][k] <= 1 for k in found["chance"])
    assert set(found["own task"]) >= {"accuracy", "loss"}
    assert [len(row) for row in done["table"]] == [7, 7, 7, 7]
    sound = load_encoder(tmp_path / finish.SOUND)
    for name, value in method.sound.state_dict().items():
        assert torch.equal(value, sound.state_dict()[name])
    again = measure(method, recipe.evaluation()[0], recipe.plain(), recipe.gap, recipe.measure)
    assert again["correspondence"] == found["trained"]["correspondence"]


@pytest.mark.parametrize("task", TASKS)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(task, tmp_path):
    recipe = tiny(task, tmp_path, **({"begin": 0.5} if task == "avts" else {}))
    whole = fit(recipe.build(watch=Quiet()), recipe.fit, watch=Quiet())

    class Stop(Exception):
        pass

    class Stopping(Quiet):
        def step(self, done, values):
            if done == 2:
                raise Stop

    options = replace(recipe.fit, save_every=1)
    with pytest.raises(Stop):
        fit(recipe.build(watch=Quiet()), options, tmp_path / "run", watch=Stopping())
    resumed = fit(recipe.build(watch=Quiet()), options, tmp_path / "run", watch=Quiet())
    for (name, a), b in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_clips_by_a_transformer_and_from_another_run(tmp_path):
    recipe = tiny("av-contrast", tmp_path, clips="vit")
    run = recipe.build(watch=Quiet())
    save_encoder(run.method.encoder, tmp_path / "first")
    other = replace(recipe, init=tmp_path / "first", fit=replace(recipe.fit, seed=5))
    begun = other.build(watch=Quiet()).method.encoder
    assert all(torch.equal(a, b) for a, b in zip(begun.parameters(), run.method.encoder.parameters(), strict=True))
    assert set(other.origins()) == {"init"}


def test_too_few_clips_and_too_short_ones_are_told(tmp_path):
    heard = Heard()
    recipe = tiny("avts", tmp_path)
    replace(recipe, batch=9).build(watch=heard)
    assert any("each of the 8 several times" in line for line in heard.said)
    with pytest.raises(ValueError, match=r"none of 8 clips is long enough.*0.8 s and 1.5 s more out of time"):
        replace(recipe, gap=1.5).build(watch=heard)
    with pytest.raises(ValueError, match="width is 0"):
        replace(recipe, width=0)
    with pytest.raises(ValueError, match=r"gap 0"):
        replace(recipe, gap=0.0)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Eleven with sound, one without, one too short."""
    folder = tmp_path_factory.mktemp("films")
    for i in range(11):
        film(folder / f"{i:02}.mkv", tone=2.0)
    film(folder / "mute.mkv")
    film(folder / "short.mkv", frames=5, tone=0.5)
    return folder


def test_of_given_videos_one_of_five_is_held_out(films, tmp_path):
    heard, recipe = Heard(), tiny("l3", tmp_path, data=(films,))
    clips, (test, known) = recipe.prepare(heard), recipe.evaluation(heard)
    assert (len(clips), len(test), known) == (9, 2, False)
    assert not set(clips.names) & set(test.names)
    assert any("mute.mkv: skipped: no sound in it" in line for line in heard.said)
    assert any("too short and left out" in line and "short.mkv" in line for line in heard.said)
    own = replace(recipe, test=(films / "00.mkv", films / "01.mkv"))
    assert len(own.prepare()) == 11
    assert [name[-6:] for name in own.evaluation()[0].names] == ["00.mkv", "01.mkv"]


def test_few_videos_are_measured_on_though_they_were_trained_on(films, tmp_path):
    recipe = tiny("avts", tmp_path, data=tuple(films / f"{i:02}.mkv" for i in range(4)))
    method = fit(recipe.build(watch=Quiet()), recipe.fit, tmp_path, watch=Quiet())
    page = recipe.finish(method.encoder, tmp_path)["report"].read_text()
    assert "Measured on the 4 clips that it was trained on" in page
    assert json.loads((tmp_path / "evaluation.json").read_text())["clips"]["test was trained on"]


# ------------------------------------------------------------------ measuring


def test_numbers_by_loops():
    draw = torch.Generator().manual_seed(0)
    score = torch.randint(5, (7, 7), generator=draw).float()  # with ties
    for i, share in enumerate(belongs(score).tolist()):
        assert share == pytest.approx(np.mean([score[i, i] > score[i, j] for j in range(7) if j != i]))
    for k in (1, 3):
        hits = []
        for i in range(7):
            order = sorted(range(7), key=lambda j, i=i: (-float(score[i, j]), j == i))  # of ties itself comes last
            hits.append(order.index(i) < k)
        assert recall(score, k) == pytest.approx(np.mean(hits))
    assert recall(torch.ones(4, 4), 3) == 0  # one vector for all is no success
    assert belongs(torch.ones(4, 4)).sum() == 0
    assert recall(torch.eye(4), 1) == 1
    assert in_time(torch.tensor([1.0]), torch.tensor([[0.0, 1.0, 2.0, 0.5]])).item() == 0.5
    assert chance(10) == {
        "correspondence": 0.5, "synchrony": 0.5, "sound@1": 0.1, "clip@1": 0.1, "sound@5": 0.5, "clip@5": 0.5
    }  # fmt: skip


class Oracle:
    """Stands for a trained method: vectors (N, 2) say which clip it is, and when it begins."""

    training = False

    def eval(self):
        return self

    def train(self, mode=True):
        return self

    def parameters(self):
        return iter([torch.zeros(1)])

    def seen(self, x):
        return x

    def heard(self, sound):
        return sound

    def score(self, picture, sound):
        return -(picture - sound).abs().sum(-1)


class Told:
    """A view that gives the vectors of the ``Oracle``; the sound of clip c at second t is 100 c + t."""

    seconds = Seconds(seconds=1.0, frames=1)

    def frames(self, sample, start):
        return torch.tensor([sample["clip"], start])

    def spectrogram(self, sound):
        return torch.stack([sound[0] // 100, sound[0] % 100])


def test_what_knows_clip_and_moment_is_always_right():
    frames = Frames(torch.zeros(30, 3, 4, 4, dtype=torch.uint8), fps=10.0)
    clips = [
        {"clip": float(c), "video": frames, "rate": 1_000, "sound": 100.0 * c + torch.arange(3_000) / 1_000}
        for c in range(6)
    ]
    found = measure(Oracle(), clips, Told(), 0.5, Pairs(shifts=4, batch=4))
    assert found["correspondence"] == found["synchrony"] == found["sound@1"] == found["clip@5"] == 1
    assert found["synchrony error"] == 0
    long = measure(Oracle(), clips, Told(), 1.5, Pairs())  # no sound of theirs is so far out of time
    assert "synchrony" not in long
    wrong = [{**clip, "clip": -clip["clip"]} for clip in clips]
    assert measure(Oracle(), wrong, Told(), 0.5, Pairs())["sound@1"] == pytest.approx(1 / 6)


def test_what_is_covered_matters_where_it_is_looked_at():
    class Corner(Oracle):
        def seen(self, x):
            return x[..., :8, 24:].flatten(1).mean(1, keepdim=True)  # above, to the right

        def heard(self, sound):
            return sound.mean((1, 2))[:, None]

    x, sound = torch.ones(3, 4, 32, 32), torch.ones(9, 5)
    fits = telling(Corner(), x, sound)
    assert fits.shape == (8, 8)
    assert (fits[:2, 6:] > 0).all()
    assert not fits[3:].any()
    assert not fits[:, :5].any()
