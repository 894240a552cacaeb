"""What the report of a run on clips with sound shows: what was seen and heard, and where in a picture a sound is.

Axes: T frames, S their side, M frames of a spectrogram, F its bands.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from partwhole.audio.pictures import player
from partwhole.core.data import some
from partwhole.core.encoder import device_of
from partwhole.core.report import Page
from partwhole.multimodal.measure import middle
from partwhole.multimodal.towers import Towers
from partwhole.vision.draw import heat, png
from partwhole.vision.maps import enlarged, resting
from partwhole.vision.pretext import drawn
from partwhole.vision.views import MEAN, STD

if TYPE_CHECKING:
    from partwhole.multimodal.recipe import Listening

SHOWN = 4  # clips
FRAMES = 6  # of a clip, side by side
SIDE = 96  # of a picture
GRID = 8  # places of a picture, down and across
MOST = 10.0  # seconds that can be played, of each


def section(page: Page, recipe: "Listening", method: Towers, clips: Sequence[Any], test: Sequence[Any]) -> None:
    """What one step sees and hears; where the sounds of some other clips are; and these to play."""
    page.section("What it was shown")
    told = (
        "Of some clips, each a row: frames as one step sees them, and the spectrogram of the same seconds, low pitch "
    )
    told += "below"
    told += ", then that of seconds out of time." if recipe.shifted else "."
    page.picture(png(views(recipe, clips), limit=200_000), told)
    page.section("Where the sound is")
    rows = [where(recipe, method, sample) for sample in some(test, SHOWN)]
    page.picture(
        png(rows, limit=200_000),
        "Of clips that are measured on, each a row: the frame in the middle; how much worse the sound fits when a "
        "place of the picture is covered, bright where most, alone and over the frame; and the sound, low pitch below.",
    )
    names = some(getattr(test, "names", []), SHOWN)
    players = []
    for sample, name in zip(some(test, SHOWN), names, strict=True):
        start = middle(recipe.plain().seconds, sample)
        heard = recipe.plain().seconds.heard(sample, start)[: round(MOST * sample["rate"])]
        players.append(player(heard, sample["rate"], f"{name}, from {start:.1f} s on"))
    page.grid(players, width=290)


def views(recipe: "Listening", clips: Sequence[Any]) -> list[list[Tensor]]:
    """Rows of pictures (3, H, W)."""
    view, rows, chosen = recipe.view(), [], some(range(len(clips)), SHOWN)
    for i in chosen:
        seen = drawn(view, clips, i, recipe.fit.seed)
        row = [shown(frame) for frame in picked(seen["x"])]
        row += [picture(seen[key]) for key in ("sound", "shifted") if key in seen]
        rows.append(row)
    return rows


@torch.no_grad()
def where(recipe: "Listening", method: Towers, sample: Any) -> list[Tensor]:
    """A frame, how much each of its places tells of the sound, both together, and the spectrogram."""
    view, device = recipe.plain(), device_of(method)
    start = middle(view.seconds, sample)
    x, sound = view.frames(sample, start), view.spectrogram(view.seconds.heard(sample, start))
    fits = telling(method, x.to(device), sound.to(device)).cpu()
    frames = picked(x)
    frame = shown(frames[len(frames) // 2])
    warm = heat(fits, frame.shape[1:])
    level = (fits - fits.min()) / (fits.max() - fits.min()).clamp(min=1e-9)
    light = 0.25 + 0.75 * enlarged(level[None], frame.shape[1:], smooth=True)
    return [frame, warm, frame * light, picture(sound)]


@torch.no_grad()
def telling(method: Towers, x: Tensor, sound: Tensor) -> Tensor:
    """How much worse the sound (T, F) fits the picture x (3, ..., S, S) with a place of it covered, (GRID, GRID).

    A cover is a grey square, two places wide, at all times of a clip. So what is seen does not depend on what the
    encoder of pictures is, or how it makes one vector of its map.
    """
    side = x.shape[-1]
    covered = x.expand(GRID * GRID, *x.shape).clone()
    for i, one in enumerate(covered):
        down, across = ((n + 0.5) / GRID * side for n in divmod(i, GRID))
        box = [slice(max(0, round(m - side / GRID)), round(m + side / GRID)) for m in (down, across)]
        one[..., box[0], box[1]] = 0
    with resting(method):
        heard = method.heard(sound[None])
        pictures = torch.cat([method.seen(part) for part in (x[None], *covered.split(16))])
        fits = method.score(pictures, heard).float()
    return (fits[0] - fits[1:]).unflatten(0, (GRID, GRID))


def picked(x: Tensor) -> list[Tensor]:
    """Frames (3, S, S) of a view: the one that it is, or some of a clip (3, T, S, S), evenly spread."""
    return [x] if x.ndim == 3 else some(list(x.transpose(0, 1)), FRAMES)


def shown(frame: Tensor) -> Tensor:
    """(3, S, S) as the network sees it -> (3, SIDE, SIDE) in [0, 1]."""
    mean, std = (torch.tensor(three)[:, None, None] for three in (MEAN, STD))
    return enlarged(frame * std + mean, (SIDE, SIDE), smooth=True).clamp(0, 1)


def picture(spectrogram: Tensor) -> Tensor:
    """(M, F) -> colours (3, SIDE, 2 SIDE), low pitch below."""
    return heat(spectrogram.mT.flip(0), (SIDE, 2 * SIDE))
