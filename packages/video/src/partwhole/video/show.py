"""What was followed, to look at: films and strips of masks beside the true ones, and where a patch goes.

Axes: T frames, H W pixels, h w places of a map, D features.
"""

import io
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from partwhole.core import files
from partwhole.video.follow import Maps, maps
from partwhole.video.propagate import propagate
from partwhole.video.protocol import Protocol
from partwhole.vision.draw import Picture, colour_of, heat, marked, painted, png
from partwhole.vision.maps import enlarged

RED = (0.9, 0.05, 0.05)
GAP = 4  # white pixels between pictures side by side


def film(
    video: Any, found: Tensor, truth: Tensor | None = None, *, height: int = 240, every: int = 1
) -> Iterator[Tensor]:
    """Frames with the masks found, and beside them the true ones, uint8 (3, height, width), both even numbers.

    found, truth: ids (T, H, W); each id has the same colour in both and in all frames, what is of none is paler.
    """
    if len(found) != len(video) or (truth is not None and truth.shape != found.shape):
        told = "" if truth is None else f" and {tuple(truth.shape)}"
        raise ValueError(f"masks {tuple(found.shape)}{told} for {len(video)} frames: one of the same size for each")
    H, W = video.size
    size = (max(2, height // 2 * 2), max(2, round(height * W / H / 2) * 2))
    for t in range(0, len(video), every):
        photo = _scaled(video.frames([t])[0], size)
        sides = [painted(photo, _ids(ids[t], size)) for ids in ((found,) if truth is None else (found, truth))]
        whole = torch.cat([F.pad(side, (0, GAP), value=1.0) for side in sides], 2)[..., :-GAP]
        yield (whole * 255).round().to(torch.uint8)


def write_mp4(path: Path | str, frames: Iterable[Tensor], *, fps: float = 24.0) -> Path:
    """A film uint8 (3, H, W), H and W even, as an mp4 file that browsers play (H.264)."""
    import av

    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream: Any = None
        for frame in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
                stream.height, stream.width = frame.shape[1:]
                stream.pix_fmt, stream.options = "yuv420p", {"crf": "23"}
            pixels = np.ascontiguousarray(frame.permute(1, 2, 0).numpy())
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        if stream is None:
            raise ValueError("a film needs at least one frame, and there is none")
        container.mux(stream.encode())
    files.write(Path(path), lambda file: file.write(out.getvalue()))
    return Path(path)


def gif(frames: Iterable[Tensor], *, fps: float = 12.0, most: int = 60) -> bytes:
    """A film uint8 (3, H, W) as an endless GIF of at most ``most`` frames, in the colours of its first."""
    from PIL import Image

    kept = [Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()) for frame in islice(frames, most)]
    if not kept:
        raise ValueError("a film needs at least one frame, and there is none")
    sheet = Image.new("RGB", (kept[0].width, kept[0].height * min(4, len(kept))))
    for i in range(min(4, len(kept))):
        sheet.paste(kept[i * (len(kept) - 1) // max(1, min(4, len(kept)) - 1)], (0, i * kept[0].height))
    palette = sheet.quantize(255, dither=Image.Dither.NONE)  # one for all, or what stands still would flicker
    few = [one.quantize(palette=palette, dither=Image.Dither.NONE) for one in kept]
    out = io.BytesIO()
    few[0].save(out, "GIF", save_all=True, append_images=few[1:], duration=round(1000 / fps), loop=0, optimize=True)
    return out.getvalue()


def indexed(ids: Tensor) -> bytes:
    """A mask (H, W) of ids as a PNG whose palette has the colours of films, as DAVIS keeps masks."""
    from PIL import Image

    image = Image.fromarray(ids.to(torch.uint8).numpy()).convert("P")
    colours = [(0, 0, 0), *((colour_of(k) * 255).round().int().tolist() for k in range(1, 256))]
    image.putpalette([value for colour in colours for value in colour])
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def strip(video: Any, rows: dict[str, Tensor], *, count: int = 6, height: int = 120) -> Picture:
    """``count`` frames from first to last, one column each, and a row for each set of masks: {name: ids (T, H, W)}."""
    at = _spaced(len(video), count)
    H, W = video.size
    size = (height, max(1, round(height * W / H)))
    photos = [_scaled(frame, size) for frame in video.frames(at)]
    pictures = [
        [painted(photo, _ids(ids[t], size)) for photo, t in zip(photos, at, strict=True)] for ids in rows.values()
    ]
    told = ", ".join(str(t) for t in at)
    return Picture(png(pictures, limit=150_000), f"{video.name}, frames {told}; rows: {', '.join(rows)}.")


@torch.no_grad()
def affinity_picture(
    encoder: Maps,
    video: Any,
    places: Sequence[tuple[float, float]],
    protocol: Protocol,
    *,
    count: int = 6,
    height: int = 120,
) -> Picture:
    """Where a patch of the first frame goes: for each of ``places``, shares of height and width, two rows of frames.

    The first shows how like every place is to it, with a cross at the most like one; the second how much of what it
    holds each place is given when labels are carried along.
    """
    if not len(places) or not all(0 <= p < 1 for place in places for p in place):
        raise ValueError(f"places are given as shares of height and width, from 0 to below 1; got {list(places)}")
    at = _spaced(len(video), count)
    H, W = video.size
    size = (height, max(1, round(height * W / H)))
    features = list(maps(encoder, video, protocol))
    h, w = features[0].shape[1:]
    cells = [(int(y * h), int(x * w)) for y, x in places]
    first = torch.zeros(len(places), h, w, device=features[0].device)
    for k, (y, x) in enumerate(cells):
        first[k, y, x] = 1
    carried = list(propagate(features, first, protocol))
    photos = [_scaled(frame, size) for frame in video.frames(at)]
    rows = []
    for k, (y, x) in enumerate(cells):
        wanted = F.normalize(features[0][:, y, x], dim=0)
        likes = [torch.einsum("d,dhw->hw", wanted, F.normalize(features[t], dim=0)).cpu() for t in at]
        tops = [divmod(int(like.argmax()), w) for like in likes]
        crosses = [((a + 0.5) / h, (b + 0.5) / w) for a, b in tops]
        rows.append([marked(heat(like, size), cross) for like, cross in zip(likes, crosses, strict=True)])
        rows[-1][0] = marked(photos[0], ((y + 0.5) / h, (x + 0.5) / w))
        rows.append([_tinted(photo, carried[t][k].cpu()) for photo, t in zip(photos, at, strict=True)])
    told = ", ".join(str(t) for t in at)
    caption = (
        f"{video.name}, frames {told}: for the patch at the cross of the first picture, how like all places of each "
        "frame are to it, the most like one with a cross, and below what of it is carried where."
    )
    return Picture(png(rows, limit=150_000), caption)


def _tinted(photo: Tensor, share: Tensor) -> Tensor:
    """The photo (3, H, W), paler, and the redder the greater a share (h, w) is beside the greatest."""
    strength = enlarged((share / share.max().clamp(min=1e-12)).sqrt()[None], photo.shape[1:], smooth=True)
    return (1 - 0.9 * strength) * (0.6 * photo + 0.4) + 0.9 * strength * torch.tensor(RED)[:, None, None]


def _spaced(length: int, count: int) -> list[int]:
    """Up to ``count`` numbers of frames, the first and the last among them, as evenly as may be."""
    if count < 1 or not length:
        raise ValueError(f"{count} of {length} frames cannot be shown: one or more are needed")
    kept = min(count, length)
    return [round(i * (length - 1) / max(1, kept - 1)) for i in range(kept)]


def _scaled(frame: Tensor, size: Sequence[int]) -> Tensor:
    """uint8 (3, H, W) as colours (3, *size)."""
    return F.interpolate(frame[None] / 255, tuple(size), mode="bilinear", antialias=True)[0].clamp(0, 1)


def _ids(ids: Tensor, size: Sequence[int]) -> Tensor:
    """Ids (H, W) as (*size), those of the nearest pixels."""
    return F.interpolate(ids[None, None].float(), tuple(size), mode="nearest-exact")[0, 0].long()
