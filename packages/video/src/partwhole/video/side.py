"""What the report of a run on clips shows beside its numbers.

Axes: T frames, N patches or blocks, S side, P side of a patch.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from partwhole.core.data import some
from partwhole.core.encoder import Encoder
from partwhole.core.report import Page
from partwhole.core.transformer import marked
from partwhole.core.watch import Watch
from partwhole.video.follow import follow
from partwhole.video.show import affinity_picture, film, gif, strip, write_mp4
from partwhole.vision.maps import IGNORED
from partwhole.vision.sheet import contact

if TYPE_CHECKING:
    from partwhole.video.recipe import ClipRecipe

SEEN = 8  # pictures of a view side by side
SHOWN = 4  # videos in which it is shown how objects are followed
HEIGHT, MOST = 160, 40  # of the film on the page: pixels, and frames


def views(page: Page, recipe: "ClipRecipe", clips: Sequence[Any], encoder: Encoder, rows: int = 4) -> None:
    """A frame of some clips, and beside each what a step sees of it, hidden tubes grey."""
    view, state = recipe.view(encoder), torch.get_rng_state()
    torch.manual_seed(recipe.fit.seed)
    seen = []
    for sample in some(clips, rows):
        video = sample["video"]
        seen.append([video.frames([len(video) // 2])[0], *pictures(view(sample), encoder)])
    torch.set_rng_state(state)
    sheet = contact(list(zip(*seen, strict=True)))
    page.section("What it was shown")
    page.picture(sheet, "A frame, and beside each what one step sees of its clip.", width=110 * len(seen[0]))


def followed(
    page: Page, recipe: "ClipRecipe", encoder: Encoder, samples: Sequence[Any], folder: Path, watch: Watch
) -> None:
    """Objects followed through some videos: a film of each in ``folder``, the first on the page, frames of the others;
    and where places of the first frame go."""
    protocol, shown = recipe.measure.protocol, some(samples, SHOWN)
    page.heading("As it was followed, and the truth")
    names = []
    for i, sample in enumerate(shown):
        watch.say(f"a film of {sample['video'].name}")
        video, found = sample["video"], follow(encoder, sample["video"], sample["masks"], protocol)
        truth = sample["masks"].frames(range(len(video)))
        each = -(-len(video) // MOST)
        fps = min(video.fps, 24.0)
        file = f"{re.sub(r'[^0-9A-Za-z._-]+', '-', str(video.name))}.mp4"
        write_mp4(folder / file, film(video, found, truth), fps=fps)
        names.append(file)
        if i == 0:
            moving = gif(film(video, found, truth, height=HEIGHT, every=each), fps=fps / each, most=MOST)
            page.picture(moving, f"{video.name}: what was found, and the truth beside it.")
        else:
            page.picture(*strip(video, {"found": found, "true": truth}))
    page.text(f"Films of these videos lie in {folder.name}/: {', '.join(names)}.")
    page.heading("Where a patch goes")
    page.picture(*affinity_picture(encoder, shown[0]["video"], centres(shown[0]["masks"].frames([0])[0]), protocol))


def centres(ids: Tensor) -> list[tuple[float, float]]:
    """A place in each of the first two objects of a mask (H, W), as shares of its height and width: the object's pixel
    nearest to its middle."""
    out = []
    for one in [k for k in ids.unique().tolist() if k not in (0, IGNORED)][:2]:
        at = (ids == one).nonzero().double()
        y, x = at[(at - at.mean(0)).square().sum(1).argmin()].tolist()
        out.append((y / ids.shape[0], x / ids.shape[1]))
    return out


def pictures(batch: Mapping[str, Any], encoder: Encoder) -> list[Tensor]:
    """Pictures (3, S, S) of what a view gives: of clips frames, of patches sheets of them."""
    views = [batch["x"]] if "x" in batch else list(batch["views"])
    hidden = [batch["hidden"]] if isinstance(batch.get("hidden"), Tensor) else list(batch.get("hidden", ()))
    if "keep" in batch:
        keep = batch["keep"]
        L = len(keep) if keep.dtype == torch.bool else encoder.embed.count(views[0].shape[-1], views[0].shape[1])  # type: ignore[union-attr,operator]
        hidden = [~keep if keep.dtype == torch.bool else ~marked(keep[None], L)[0]]
    out: list[Tensor] = []
    for i, x in enumerate(views):
        out += _frames(_veiled(x, hidden[i], encoder) if i < len(hidden) else x)[: max(1, SEEN // len(views))]
    return out + [_frames(crop)[0] for crop in batch.get("crops", ())]


def _frames(x: Tensor) -> list[Tensor]:
    if x.ndim == 3:
        return [x]
    if x.ndim == 4:  # (T, 3, S, S), or a clip (3, T, S, S)
        return list(x if x.shape[1] == 3 else x.transpose(0, 1))
    if x.shape[1] == 3:  # blocks (N, 3, T, S, S): the first frame of each
        return list(x[:, :, 0])
    return [_sheet(patches) for patches in x]


def _sheet(patches: Tensor) -> Tensor:
    """(N, 3, P, P) -> (3, S, S), a gap between them."""
    side = round(len(patches) ** 0.5)
    grid = F.pad(patches, (0, 2, 0, 2)).unflatten(0, (side, side))
    return grid.permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)


def _veiled(x: Tensor, hidden: Tensor, encoder: Encoder) -> Tensor:
    """A clip (3, T, S, S) whose hidden tubes (L,) are grey."""
    t, h, w = encoder.embed.grid(x[None])  # type: ignore[union-attr,operator]
    tube, patch = encoder.embed.tube, encoder.embed.patch  # type: ignore[union-attr]
    grown = hidden.view(t, h, w)
    for axis, times in enumerate((tube, patch, patch)):
        grown = grown.repeat_interleave(int(times), axis)  # type: ignore[arg-type]
    T, H, W = grown.shape
    out = x.clone()
    out[:, :T, :H, :W] = out[:, :T, :H, :W].masked_fill(grown, 0.0)
    return out
