"""Sounds as samples: what folders and names tell, what is wrong, parts of sets, and what is kept."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch

from partwhole.audio.decode import BadSound
from partwhole.audio.find import chosen, find
from partwhole.audio.generate import CLASSES, generated
from partwhole.audio.sounds import read_sounds
from partwhole.audio.sources import Among, Source

RATE = 8_000


def write(path, seconds: float = 0.2, level: float = 0.3, rate: int = RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.random.default_rng(len(str(path))).normal(size=round(seconds * rate))
    soundfile.write(path, np.clip(level * x, -1, 1), rate)


def source(tmp_path, **more) -> Source:
    return Source(cache=tmp_path / "cache", workers=2, **more)


def digits(root) -> None:
    for digit in range(3):
        for speaker in ("ann", "bob", "cem"):
            for i in (0, 4, 5, 6):
                write(root / f"{digit}_{speaker}_{i}.wav")


def test_folders_are_classes(tmp_path):
    for name in ("cat", "dog"):
        for i in range(5):
            write(tmp_path / "data" / name / f"{i}.wav", 0.1 + 0.02 * i)
    sounds = source(tmp_path).unlabelled([tmp_path / "data"], RATE)
    assert sounds.classes == ["cat", "dog"]
    assert sounds.labels == [0] * 5 + [1] * 5
    assert sounds[3]["sound"].shape == (round(0.16 * RATE),)
    assert sounds[7]["label"] == 1
    assert sounds[7]["rate"] == RATE
    train, test = source(tmp_path).labelled(tmp_path / "data", RATE)
    assert (len(train), len(test)) == (8, 2)
    assert not set(train.names) & set(test.names)
    assert sorted(test.labels) == [0, 1]


def test_a_flat_folder_has_no_labels(tmp_path):
    for i in range(3):
        write(tmp_path / "data" / f"{i}.flac")
    sounds = source(tmp_path).unlabelled([tmp_path / "data"], RATE)
    assert sounds.classes == []
    assert "label" not in sounds[0]
    with pytest.raises(BadSound, match="a folder of their own"):
        source(tmp_path).labelled(tmp_path / "data", RATE)


def test_parts_beside_each_other(tmp_path):
    for part in ("train", "test", "unlabelled"):
        for name in ("a", "b"):
            write(tmp_path / "data" / part / name / "1.wav")
    sounds = source(tmp_path).unlabelled([tmp_path / "data"], RATE)
    assert sounds.names == ["train/a/1.wav", "train/b/1.wav", "unlabelled/a/1.wav", "unlabelled/b/1.wav"]
    assert sounds.labels == [0, 1, None, None]
    train, test = source(tmp_path).labelled(tmp_path / "data", RATE)
    assert test.names == ["test/a/1.wav", "test/b/1.wav"]
    assert train.names == ["train/a/1.wav", "train/b/1.wav"]


def test_spoken_digits_tell_class_speaker_and_official_part(tmp_path):
    digits(tmp_path / "recordings")
    train, test = source(tmp_path).labelled(tmp_path, RATE)
    assert train.classes == ["0", "1", "2"]
    assert {name.split("_")[-1] for name in test.names} == {"0.wav", "4.wav"}
    assert {name.split("_")[-1] for name in train.names} == {"5.wav", "6.wav"}
    assert train.voices == ["ann", "bob", "cem"]
    assert train[0]["speaker"] == 0


def test_speakers_are_held_out_of_training_and_of_labels(tmp_path):
    digits(tmp_path / "recordings")
    held = source(tmp_path, held_out=("bob",))
    train, test = held.labelled(tmp_path, RATE)
    assert set(test.speakers) == {"bob"}
    assert set(train.speakers) == {"ann", "cem"} == set(held.unlabelled([tmp_path], RATE).speakers)
    assert len(train) + len(test) == 36
    with pytest.raises(BadSound, match="eve is not heard; there is ann, bob, cem"):
        source(tmp_path, held_out=("eve",)).labelled(tmp_path, RATE)
    write(tmp_path / "other" / "a.wav")
    with pytest.raises(BadSound, match="do not say who is heard"):
        source(tmp_path, held_out=("ann",)).unlabelled([tmp_path / "other"], RATE)


def test_speakers_can_be_what_is_told_apart(tmp_path):
    digits(tmp_path / "recordings")
    train, test = source(tmp_path, names="speaker").labelled(tmp_path, RATE)
    assert train.classes == test.classes == ["ann", "bob", "cem"]
    assert [train.classes[i] for i in train.labels] == train.speakers


def test_an_index_tells_everything(tmp_path):
    rows = [{"file": f"x/{i}.wav", "label": "ab"[i % 2], "split": "test" if i > 3 else "train"} for i in range(6)]
    for row in rows:
        write(tmp_path / "set" / row["file"])
    write(tmp_path / "set" / "unlisted.wav")
    lines = [json.dumps({**row, "speaker": "ann"}) for row in rows]
    (tmp_path / "set" / "index.jsonl").write_text("\n".join([*lines, "", "broken", '{"label": "a"}']))
    train, test = source(tmp_path).labelled(tmp_path, RATE)  # in the one folder of the folder
    assert (len(train), len(test)) == (4, 2)
    assert train.speakers == ["ann"] * 4
    assert sum("index.jsonl, line" in path for path, _ in train.problems) == 2
    found, _ = find(tmp_path / "set" / "index.jsonl")
    assert len(chosen(found, None)) == 6


def test_what_is_wrong_is_told_and_skipped(tmp_path):
    for i in range(3):
        write(tmp_path / "data" / f"good{i}.wav")
    (tmp_path / "data" / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "data" / "zero.wav", np.zeros((0, 1)), RATE)
    soundfile.write(tmp_path / "data" / "silent.wav", np.zeros(800), RATE)
    soundfile.write(tmp_path / "data" / "nan.wav", np.full(9, np.nan, np.float32), RATE, "FLOAT")
    write(tmp_path / "data" / "clipped.wav", level=30)
    sounds = source(tmp_path).unlabelled([tmp_path / "data"], RATE)
    assert sounds.names == ["clipped.wav", "good0.wav", "good1.wav", "good2.wav"]
    told = {path.rsplit("/", 1)[-1]: why for path, why in sounds.problems}
    assert "skipped: not a sound" in told["text.wav"]
    assert told["zero.wav"] == "skipped: a sound of zero length"
    assert told["silent.wav"] == "skipped: silence"
    assert "skipped: values that are not finite" in told["nan.wav"]
    assert "kept: clipped" in told["clipped.wav"]
    assert "skipped" in sounds.told(2)[0]
    assert sounds.told(2)[-1] == "and 3 more"
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "text.wav").write_text("no sound")
    with pytest.raises(BadSound, match=r"none of 1 files can be used; the first: .*text\.wav"):
        source(tmp_path).unlabelled([tmp_path / "bad"], RATE)
    with pytest.raises(BadSound, match="no such file or folder"):
        source(tmp_path).unlabelled([tmp_path / "nowhere"], RATE)


def test_long_files_are_cut_and_pieces_stay_on_one_side(tmp_path):
    for name in ("a", "b"):
        for i in range(2):
            write(tmp_path / "data" / name / f"{i}.wav", 1.0)
    cut = source(tmp_path, longest=0.3)
    sounds = cut.unlabelled([tmp_path / "data"], RATE)
    assert [len(s["sound"]) for s in sounds[:4]] == [2400, 2400, 2400, 800]
    assert sounds.names[1] == "a/0.wav from 0.3 s"
    train, test = cut.labelled(tmp_path / "data", RATE)
    assert {n.split(" ")[0] for n in train.names}.isdisjoint(n.split(" ")[0] for n in test.names)
    assert len(train) == len(test) == 8


@pytest.mark.parametrize("memory", [2**30, 0])
def test_sounds_are_the_same_kept_or_read_again(tmp_path, memory):
    entries = []
    for i in range(5):
        write(tmp_path / f"{i}.wav", 0.1 + 0.1 * i, rate=11_025)
        entries += find(tmp_path / f"{i}.wav")[0]
    made = read_sounds(entries, RATE, longest=0.25, cache=tmp_path / "c", memory=memory)
    again = copy.deepcopy(read_sounds(entries, RATE, longest=0.25, cache=tmp_path / "c", memory=memory))
    whole = read_sounds(entries, RATE, cache=tmp_path / "d")
    joined = torch.cat([s["sound"] for s in made if s["rate"] == RATE])
    torch.testing.assert_close(joined, torch.cat([s["sound"] for s in whole]), atol=2e-6, rtol=0)
    assert all(torch.equal(a["sound"], b["sound"]) for a, b in zip(made, again, strict=True))
    assert made.key == again.key != whole.key


def test_subsets_and_others(tmp_path):
    sounds = generated(20, RATE)
    part = sounds.subset([3, -1])
    assert part.names == [sounds.names[3], sounds.names[19]]
    assert torch.equal(part[1]["sound"], sounds[19]["sound"])
    assert part.key != sounds.key
    assert len(Among(part)[0]["others"]) == 2
    limited = replace(source(tmp_path), limit=7, generate=30).unlabelled((), RATE)
    assert len(limited) == 7


def test_generated_speakers_are_told_apart_where_they_were_heard(tmp_path):
    train, test = source(tmp_path, generate_labelled=4, names="speaker").labelled(None, RATE)
    assert train.classes == test.classes == train.voices
    assert len(train.classes) == 4
    for half in (train, test):
        assert [half.classes[label] for label in half.labels] == half.speakers


def test_generated_sounds_are_of_all_classes_and_strangers_are_for_tests(tmp_path):
    train, test = source(tmp_path, generate_labelled=4).labelled(None, RATE)
    assert train.classes == test.classes == list(CLASSES)
    assert train.labels.count(3) == 4
    assert test.labels.count(3) == 2
    assert not set(train.speakers) & set(test.speakers)
    for sample in train:
        assert sample["sound"].abs().max() <= 1
        assert 0.4 * RATE < len(sample["sound"]) <= RATE
        assert sample["sound"].square().mean() > 1e-5
    assert torch.equal(generated(3, RATE)[2]["sound"], generated(9, RATE)[2]["sound"])
    assert not torch.equal(generated(3, RATE)[2]["sound"], generated(3, RATE, seed=1)[2]["sound"])
