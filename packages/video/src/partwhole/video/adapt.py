"""Learn from the very video that is to be followed, before it is (Jabri et al., 2020, section 4.4)."""

import copy
from dataclasses import dataclass, field, replace

from partwhole.core.data import Stream
from partwhole.core.encoder import Encoder, device_of
from partwhole.core.fit import Fit, Run, fit
from partwhole.core.watch import Quiet
from partwhole.video.readers import Video
from partwhole.video.views import Walk, Walking, begins
from partwhole.video.walk import RandomWalk


@dataclass(frozen=True, kw_only=True)
class Adaptation:
    """A few steps of the walk on one video."""

    steps: int = 10
    """Optimizer steps."""
    lr: float = 1e-3
    """Learning rate, the same in all of them."""
    batch: int = 4
    """Walks a step."""
    size: int = 64
    """Side of a frame, in pixels."""
    walk: Walk = field(default_factory=Walk)
    temperature: float = 0.05
    """As of training."""
    seed: int = 0
    """Of the walks."""


def adapt(encoder: Encoder, video: Video, options: Adaptation | None = None) -> Encoder:
    """A copy of the encoder that has walked through this video, in eval mode; the encoder stays as it is.

    The projection that it was trained with is not kept with an encoder, so that nodes here are what it gives itself.
    Statistics of BatchNorm become those of the video, little by little. In a video that is too short for the walk's
    rate a walk takes every frame; core.data.BadSample where it has fewer frames than a walk.
    """
    o = options or Adaptation()
    long = len(begins(video, o.walk.frames, o.walk.rate)[0]) > 0
    view = Walking(walk=o.walk if long else replace(o.walk, rate=video.fps), size=o.size, nodes=0)
    method = RandomWalk(copy.deepcopy(encoder), dim=None, temperature=o.temperature)
    stream = Stream([{"video": video}], view, batch=o.batch, seed=o.seed)
    how = Fit(
        steps=o.steps, lr=o.lr, schedule="constant", warmup=0.0, weight_decay=0.0, seed=o.seed,
        device=str(device_of(encoder)),
    )  # fmt: skip
    return fit(Run(method=method, stream=stream), how, watch=Quiet()).encoder.eval()
