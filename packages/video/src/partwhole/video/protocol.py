"""How labels are carried along a video: the options, and the published protocols."""

from dataclasses import dataclass
from typing import Literal

from partwhole.video.tiles import Window


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Label propagation along a video. Numbers of one protocol are not to be compared with those of another."""

    context: int = 7
    """Past frames that labels come from, beside the first one."""
    first: Literal["windowed", "free", "left"] = "windowed"
    """The first frame, whose labels are given: kept with a window as the others have, kept without one, or left behind
    like any other.
    """
    repeats: Literal["none", "one", "all"] = "none"
    """How often the first frame stands among the past ones too, where it is kept: not at all, once while it is one of
    them, or as often as there are too few of them.
    """
    window: Window = "disc"
    """What a place sees of another frame: a square or a disc around itself, an open disc without what lies just at the
    radius, or all of it (none).
    """
    radius: int = 12
    """Of the window, in places of the map."""
    mode: Literal["top-k", "soft"] = "top-k"
    """top-k: labels come from the most similar places alone; soft: from all that are seen."""
    topk: int = 5
    """The most similar places, of all frames together."""
    ties: bool = False
    """Places as similar as the last of these count too."""
    temperature: float = 0.1
    """Of the softmax over cosines: the lower, the more the most similar place alone decides."""
    size: int = 480
    """The shorter side of frames as the encoder sees them, in pixels; 0: as they are."""
    sides: Literal["nearest", "up", "sixty-four"] = "nearest"
    """How both sides become what an encoder of patches takes: the nearest multiple of its patch, or the next above; an
    encoder without takes them as they are. sixty-four: the longer one becomes the multiple of 64 below, for any.
    """
    down: Literal["nearest", "bilinear"] = "nearest"
    """How the first frame's masks come to the grid."""
    up: Literal["nearest", "bilinear"] = "bilinear"
    """How labels become as large as the frames again."""
    stretch: bool = False
    """Each label's map from 0 to 1, by its own least and greatest value, before the strongest label is taken."""
    decide: Literal["video", "input"] = "video"
    """Where the strongest label is taken: at the video's own size, or at that of the encoder's input, and then enlarged
    without mixing.
    """
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of similarities; bfloat16 takes half the memory, and changes some labels: how many is measured and told."""

    def __post_init__(self) -> None:
        for name, least in {"context": 0, "radius": 0, "topk": 1, "size": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} of a protocol is {getattr(self, name)}; expected {least} or more")
        if not self.temperature > 0:
            raise ValueError(f"temperature of a protocol is {self.temperature}; expected a number above 0")
        if self.first == "left" and self.context < 1:
            raise ValueError("labels come from nowhere: keep the first frame, or give a context of 1 or more")
        if self.window == "open-disc" and self.radius < 1:
            raise ValueError("an open disc of radius 0 holds no place, not even one's own: give 1 or more")


PROTOCOLS: dict[str, Protocol] = {
    # Jabri et al., 2020, and its code: a video begins with as many copies of its first frame as the context is long.
    "crw": Protocol(
        context=20,
        first="free",
        repeats="all",
        window="open-disc",
        topk=10,
        temperature=0.05,
        size=0,
        down="bilinear",
    ),
    # Caron et al., 2021, eval_video_segmentation.py.
    "dino": Protocol(window="square", ties=True, temperature=0.1, sides="sixty-four", stretch=True, decide="input"),
    # Siméoni et al., 2025, the notebook on segmentation tracking; its nearest places lie half a pixel beside ours.
    "dinov3": Protocol(ties=True, temperature=0.2, size=960, sides="up", up="nearest", stretch=True),
    # Xu and Wang, 2021, and its code: past frames hold the first one as long as it is one of them.
    "vfs": Protocol(context=20, repeats="one", window="open-disc", topk=10, temperature=0.07, stretch=True),
}
