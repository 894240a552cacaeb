"""What features are worth for following objects, beside copying, pixels and random networks.

Axes: T frames, H W pixels, B frames of a batch.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core.encoder import Encoder, describe, device_of, fresh
from partwhole.core.evaluate import settled
from partwhole.core.probe import fingerprint
from partwhole.core.report import Spread
from partwhole.core.watch import Quiet, Watch, Words
from partwhole.video.adapt import Adaptation, adapt
from partwhole.video.follow import Maps, first_ids, follow, seen_size
from partwhole.video.metrics import davis
from partwhole.video.protocol import PROTOCOLS, Protocol
from partwhole.video.views import Walk
from partwhole.vision.maps import resized

Arm = Literal["copy", "pixels", "random", "encoder"]
PIXELS = 8  # the side of a patch of pixels


@dataclass(frozen=True, kw_only=True)
class Following:
    """How objects are followed, and beside what."""

    arms: tuple[Arm, ...] = ("copy", "pixels", "random", "encoder")
    """copy: the first mask for all frames; pixels: the colours of patches of 8 by 8 pixels as features; random:
    networks like the encoder with fresh weights; encoder: its features.
    """
    draws: int = 3
    """Of random networks."""
    preset: Literal["crw", "dino", "dinov3", "vfs", "own"] = "crw"
    """A published protocol, as it stands, or one's own."""
    own: Protocol = field(default_factory=Protocol)
    """The protocol, with preset own."""
    adapt: int = 0
    """Steps of the walk that the encoder takes on each video before it follows objects in it (``adapt``); 0: none."""
    batch: int = 8
    """Frames that are encoded together."""
    seed: int = 0
    """Of the random networks."""

    def __post_init__(self) -> None:
        for name, least in {"draws": 1, "batch": 1, "adapt": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, and is {getattr(self, name)}")
        if not self.arms:
            raise ValueError("arms are copy, pixels, random or encoder, and there are none")
        if self.preset != "own" and self.own != Protocol():
            raise ValueError(f"own is a protocol of one's own, and the preset is {self.preset}: set the preset to own")

    @property
    def protocol(self) -> Protocol:
        return self.own if self.preset == "own" else PROTOCOLS[self.preset]


def measure(
    encoder: Maps,
    samples: Sequence[Mapping[str, Any]],
    options: Following,
    watch: Watch | None = None,
    *,
    keep: Callable[[dict[str, Any]], None] = lambda results: None,
    begun: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """J and F of objects followed through every sample, {"video", "masks"}, as the DAVIS challenge has them.

    encoder: as of ``follow``; random networks need an Encoder of which a fresh one can be made.
    keep, begun: is told the results so far, and brings those that an interrupted measurement kept.
    Returns {"rows": {row: [of each draw {sequence: {"objects", "J", "F", "J recall", ...}}]}, "mean": {row: {"J&F",
    "J", "F", "J recall", "J decay", ...: mean over draws, "spread": standard deviations of draws}}, "sequences",
    "problems", "options", "of"}; the numbers of a sequence are lists of those of its objects, and means are over all
    objects of all sequences.
    """
    watch = watch or Quiet()
    if "random" in options.arms:
        if not isinstance(encoder, Encoder):
            raise TypeError("random needs a network like the encoder with fresh weights, and this is a function or a "
                            "module that says not how it is made: leave random out of arms")  # fmt: skip
        describe(encoder)
    numbers, problems = usable(samples, adapted=options.adapt > 0)
    for name, what in problems:
        watch.say(f"{name} is left out: {what}")
    results: dict[str, Any] = {
        "rows": {},
        "mean": {},
        "sequences": list(numbers),
        "problems": problems,
        "options": json.loads(json.dumps(asdict(options))),
        "of": _called(encoder),
    }
    if begun and {**begun, "rows": {}, "mean": {}} == results:
        results["rows"] = json.loads(json.dumps(begun["rows"]))
    rows, jobs = results["rows"], []
    for arm in options.arms:
        draws = rows.setdefault(arm, [])
        for d in range(options.draws if arm == "random" else 1):
            if d == len(draws):
                draws.append({})
            jobs += [(arm, d, name) for name in numbers if name not in draws[d]]
    network: tuple[Any, Maps | None] = (None, None)
    for done, (arm, d, name) in enumerate(jobs):
        watch.step(done, {"total": len(jobs)})
        sample = samples[numbers[name]]
        if network[0] != (arm, d):
            network = (arm, d), _network(arm, d, encoder, samples[min(numbers.values())], options)
        rows[arm][d][name] = _score(_adapted(network[1], arm, sample, options), sample, options, Words(watch))
        results["mean"] = means(rows)
        keep(results)
    watch.step(len(jobs), {"total": len(jobs)})
    results["mean"] = means(rows)
    return results


def means(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """Of each row, over the objects of all sequences that are measured so far, and then over draws, with the standard
    deviation of draws as "J spread" and so on."""
    out: dict[str, dict[str, float]] = {}
    for row, draws in rows.items():
        each: dict[str, list[float]] = {}
        for draw in draws:
            for name in next(iter(draw.values()), {"objects": []}):
                if name != "objects":
                    values = [v for cell in draw.values() for v in cell[name]]
                    each.setdefault(name, []).append(sum(values) / len(values))
        spreads = {name: Spread.of(values) for name, values in each.items()}
        out[row] = {name: one.mean for name, one in spreads.items()}
        if len(draws) > 1:
            out[row] |= {f"{name} spread": one.std for name, one in spreads.items()}
    return out


def pixels(x: Tensor, side: int = PIXELS) -> Tensor:
    """Patches of colours as features: x (B, 3, H, W) -> (B, 3 * side * side, H / side, W / side), rounded up.

    A frame ends with its last pixel, said again, where a patch is larger than what is left.
    """
    H, W = x.shape[-2:]
    x = F.pad(x, (0, -W % side, 0, -H % side), mode="replicate")
    return F.pixel_unshuffle(x, side)


def copied(video: Any, masks: Any) -> Tensor:
    """The first mask for every frame, int16 (T, H, W)."""
    return first_ids(masks, video.size).expand(len(video), -1, -1)


def _called(encoder: Maps) -> str:
    """What tells one encoder from another: its weights, or the name of a function."""
    if isinstance(encoder, nn.Module):
        return fingerprint(encoder)  # type: ignore[arg-type]
    return getattr(encoder, "__qualname__", type(encoder).__qualname__)


def _network(arm: str, d: int, encoder: Maps, sample: Mapping[str, Any], options: Following) -> Maps | None:
    if arm == "copy":
        return None
    if arm == "pixels":
        return pixels
    if arm == "encoder":
        return encoder
    assert isinstance(encoder, Encoder)
    random = fresh(encoder, seed=options.seed + d).to(device_of(encoder))
    video = sample["video"]
    size = seen_size(random, video.size, options.protocol)
    count = min(options.batch, len(video))
    frames = video.frames([i * (len(video) - 1) // max(1, count - 1) for i in range(count)])
    return settled(random, torch.stack([resized(frame, size) for frame in frames]))


def _adapted(network: Maps | None, arm: str, sample: Mapping[str, Any], options: Following) -> Maps | None:
    if not options.adapt or arm != "encoder":
        return network
    if not isinstance(network, Encoder):
        raise TypeError("adapt trains a copy of the encoder, and this is a function: give an Encoder, or adapt 0")
    return adapt(network, sample["video"], Adaptation(steps=options.adapt))


def _score(network: Maps | None, sample: Mapping[str, Any], options: Following, watch: Watch) -> dict[str, Any]:
    video, masks = sample["video"], sample["masks"]
    if network is None:
        found = copied(video, masks)
    else:
        found = follow(network, video, masks, options.protocol, batch=options.batch, watch=watch)
    scored = davis(found, masks.frames(range(len(video))))
    return {"objects": list(scored.objects), **scored.each}


def usable(samples: Sequence[Mapping[str, Any]], *, adapted: bool = False) -> tuple[dict[str, int], list[list[str]]]:
    """The numbers of samples that can be measured, by name; and of the others the name and what is wrong with them.

    ``adapted``: by an encoder that walks through them first. ValueError where there is none.
    """
    out: dict[str, int] = {}
    problems: list[list[str]] = []
    for i in range(len(samples)):
        sample = samples[i]
        name = str(getattr(sample.get("video"), "name", f"sample {i}"))
        name = f"{name}-{i}" if name in out else name
        if wrong := _wrong(sample, adapted):
            problems.append([name, wrong])
        else:
            out[name] = i
    if not out:
        first = f"; the first: {': '.join(problems[0])}" if problems else ""
        raise ValueError(f"objects are followed in videos with masks, and none of {len(samples)} can be used{first}")
    return out, problems


def _wrong(sample: Mapping[str, Any], adapted: bool) -> str | None:
    """Why a sample cannot be measured."""
    if "video" not in sample or "masks" not in sample:
        return f"it has {', '.join(sorted(sample))}: a video and the masks of its objects are needed"
    video, masks = sample["video"], sample["masks"]
    if len(video) < 3 or len(masks) != len(video):
        told = "a mask for each of three frames or more is needed, since the first and the last do not count"
        return f"{len(video)} frames and {len(masks)} masks: {told}"
    if adapted and len(video) < (walk := Walk().frames):
        return f"{len(video)} frames, and the walks of --measure.adapt have {walk}: leave it out, or adapt 0"
    try:
        first_ids(masks, video.size)
    except ValueError as error:
        return str(error)
    return None
