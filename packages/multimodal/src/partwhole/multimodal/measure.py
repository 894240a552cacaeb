"""What pictures and sounds are worth to each other: which sound belongs to a clip, and whether it is in time.

Axes: N clips, S sounds of a clip out of time, D features.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from partwhole.core.encoder import device_of
from partwhole.multimodal.towers import Towers
from partwhole.multimodal.views import Paired, Seconds
from partwhole.vision.maps import resting

RANKS = (1, 5)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """How pictures and sounds are measured."""

    shifts: int = 8
    """Sounds out of time that a clip is asked about, evenly spread over all that there are."""
    draws: int = 3
    """Random networks to compare with; 0: none."""
    batch: int = 32
    """Clips that pass through the networks at once."""

    def __post_init__(self) -> None:
        for name, least in {"shifts": 1, "draws": 0, "batch": 1}.items():
            if getattr(self, name) < least:
                raise ValueError(f"measure.{name} is {getattr(self, name)}; expected {least} or more")


def belongs(score: Tensor) -> Tensor:
    """Of all other sounds, to how many a clip's own is preferred: score (N, N), a row for each clip -> (N,) shares.

    A tie is no preference. By chance a half.
    """
    own = score.diagonal()[:, None]
    return (own > score).sum(1).double() / max(1, len(score) - 1)  # never itself


def in_time(own: Tensor, shifted: Tensor) -> Tensor:
    """The same among a clip's own sound in time and out of it: own (N,), shifted (N, S) -> (N,) shares."""
    return (own[:, None] > shifted).double().mean(1)


def recall(score: Tensor, k: int) -> float:
    """Share of the rows of score (N, M) whose own column is among the k highest; of those that tie, it comes last.

    By chance k / M.
    """
    ahead = (score >= score.diagonal()[:, None]).sum(1) - 1  # itself
    return (ahead < k).double().mean().item()


@torch.no_grad()
def vectors(method: Towers, clips: Sequence[Any], view: Paired, gap: float, options: Pairs) -> dict[str, Any]:
    """Of the middle of every clip, {"picture", "sound"} (N, D); {"shifted": [(S, D) or (0, D)]}, those of sounds out of
    time, none where a clip is too short for that. On the CPU."""
    device, plain = device_of(method), view.seconds
    pictures, sounds, late, counts = [], [], [], []
    apart = replace(plain, gap=gap)
    with resting(method):
        for at in range(0, len(clips), options.batch):
            x, own, others = [], [], []
            for i in range(at, min(at + options.batch, len(clips))):
                start = middle(plain, clips[i])
                x.append(view.frames(clips[i], start))
                own.append(view.spectrogram(plain.heard(clips[i], start)))
                begins = spread(apart, clips[i], start, options.shifts)
                others += [view.spectrogram(plain.heard(clips[i], b)) for b in begins]
                counts.append(len(begins))
            pictures.append(method.seen(torch.stack(x).to(device)).float().cpu())
            rows = torch.stack(own + others)
            heard = torch.cat([method.heard(part.to(device)).float().cpu() for part in rows.split(options.batch)])
            sounds.append(heard[: len(own)])
            late.append(heard[len(own) :])
    return {
        "picture": torch.cat(pictures),
        "sound": torch.cat(sounds),
        "shifted": list(torch.cat(late).split(counts)),
    }


@torch.no_grad()
def scores(method: Towers, picture: Tensor, sound: Tensor) -> Tensor:
    """How well each sound (M, D) fits each picture (N, D): (N, M), on the CPU."""
    device = device_of(method)
    with resting(method):
        sound = sound.to(device)
        return torch.cat([method.score(p.to(device)[:, None], sound).float().cpu() for p in picture.split(64)])


def measure(method: Towers, clips: Sequence[Any], view: Paired, gap: float, options: Pairs) -> dict[str, float]:
    """``correspondence`` and ``synchrony``, each with the standard error of its mean over clips, and recall both ways:
    "sound of a clip" among all sounds, "clip of a sound" among all clips."""
    found = vectors(method, clips, view, gap, options)
    table = scores(method, found["picture"], found["sound"])
    out: dict[str, float] = {}
    put(out, "correspondence", belongs(table))
    asked = [i for i, rows in enumerate(found["shifted"]) if len(rows)]
    if asked:
        shares = []
        for i in asked:
            shifted = scores(method, found["picture"][i : i + 1], found["shifted"][i])
            shares.append(in_time(table[i, i][None], shifted))
        put(out, "synchrony", torch.cat(shares))
    for k in RANKS:
        out[f"sound@{k}"], out[f"clip@{k}"] = recall(table, k), recall(table.mT, k)
    return out


def chance(count: int) -> dict[str, float]:
    """What is right by chance among so many clips."""
    ranks = {f"{name}@{k}": min(1.0, k / count) for k in RANKS for name in ("sound", "clip")}
    return {"correspondence": 0.5, "synchrony": 0.5, **ranks}


def put(out: dict[str, float], name: str, share: Tensor) -> None:
    out[name] = share.mean().item()
    out[f"{name} error"] = share.std().item() / math.sqrt(len(share)) if len(share) > 1 else math.nan


def middle(seconds: Seconds, sample: Any) -> float:
    """When the clip in the middle begins."""
    starts = seconds.starts(sample)
    return float(starts[(len(starts) - 1) // 2])


def spread(seconds: Seconds, sample: Any, start: float, count: int) -> list[float]:
    """When sounds out of time begin, evenly spread over all such moments; [] where there are none."""
    if sum(seconds.others(sample, start)) <= 0:
        return []
    return [seconds.out_of_time(sample, start, (s + 0.5) / count) for s in range(count)]
