"""Generic methods as recipes for clips: what ``core.sees`` asks of a modality, and what differs for some of them."""

from abc import ABC
from dataclasses import dataclass
from typing import Any

from partwhole.core import catalog, sees
from partwhole.video.clip_sees import on_clips
from partwhole.video.recipe import ClipRecipe, OnFrames
from partwhole.vision.recipe import Policy
from partwhole.vision.sees import PAPERS


@dataclass(frozen=True, kw_only=True)
class FrameRecipe(OnFrames, ABC):
    """Of which two frames are seen, as two views of one image are elsewhere (Xu and Wang, 2021: VFS)."""

    policy: Policy = "simclr"  # type: ignore[misc]  # a field here
    """How frames are changed: as in the paper of that name, from the gentle mae to infomin, which leaves least alike.
    """
    apart: float = 1.0  # type: ignore[misc]
    """Most seconds from one frame to the other."""

    def short(self, video: Any) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class Cropped(FrameRecipe, ABC):
    """Of which crops are seen, as DINO has them."""

    policy: Policy = "dino"  # type: ignore[misc]


def on_frames(kind: Any) -> Any:
    """A generic method, of those that see two views of a thing, as a recipe for pairs of frames."""
    between = () if kind.sees == "views" else (Cropped,)
    own = {"policy": PAPERS[kind]} if kind in PAPERS else {}
    return sees.recipe(kind, FrameRecipe, *between, module=__name__, **own)


GENERIC = {
    name: on_frames(kind)
    if kind.sees in ("views", "crops", "numbered")
    else on_clips(kind, ClipRecipe, module=__name__)
    for name, kind in catalog.METHODS.items()
    if kind.sees not in ("labels", "guesses", "strong")
}
"""By name: pairs of frames for what compares whole things, whole clips for what hides tokens."""
