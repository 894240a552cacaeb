"""Spectrograms as one PNG, and sounds to play, small enough for a report.

Axes: T frames, F bands; low pitch is below, time goes to the right.
"""

import base64
import io
import struct
import wave
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from partwhole.audio.embed import SpectrogramPatches
from partwhole.core.methods import MAE
from partwhole.core.transformer import marked

FIRE = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))  # dark to bright in grey too
WHITE, GREY = 255, 254  # of the palette; the others go from dark to bright
STEPS = 254


def sheet(rows: Sequence[Sequence[Tensor]], low: float, high: float, *, scale: int = 2, gap: int = 4) -> bytes:
    """Rows of spectrograms (T, F) side by side as a PNG, ``low`` dark and ``high`` bright, what is not finite grey."""
    drawn = [[_drawn(x, low, high, scale) for x in row] for row in rows]
    columns = max(map(len, drawn))
    widths = [max(row[j].shape[1] for row in drawn if j < len(row)) for j in range(columns)]
    lines = []
    for row in drawn:
        height = max(p.shape[0] for p in row)
        line = torch.full((height + gap, sum(widths) + gap * (columns - 1)), WHITE, dtype=torch.uint8)
        left = 0
        for picture, wide in zip(row, widths, strict=False):
            line[: picture.shape[0], left : left + picture.shape[1]] = picture
            left += wide + gap
        lines.append(line)
    return png(torch.cat(lines)[:-gap])


def _drawn(x: Tensor, low: float, high: float, scale: int) -> Tensor:
    level = ((x.nan_to_num(low) - low) / max(high - low, 1e-9) * (STEPS - 1)).round().clamp(0, STEPS - 1)
    level = level.to(torch.uint8).masked_fill(~x.isfinite(), GREY)
    return level.mT.flip(0).repeat_interleave(scale, 0).repeat_interleave(scale, 1)


def png(level: Tensor) -> bytes:
    """Numbers (H, W) uint8 of the palette as the bytes of a PNG file."""
    height, width = level.shape
    at = torch.linspace(0, len(FIRE) - 1, STEPS)
    below = at.floor().clamp(max=len(FIRE) - 2).long()
    stops = torch.tensor(FIRE, dtype=torch.float32)
    fire = torch.lerp(stops[below], stops[below + 1], (at - below)[:, None]).round().to(torch.uint8)
    palette = torch.cat([fire, torch.tensor([[150, 150, 150], [255, 255, 255]], dtype=torch.uint8)])
    rows = torch.cat([torch.zeros(height, 1, dtype=torch.uint8), level], 1)  # each begins with its filter, none
    return b"".join((
        b"\x89PNG\r\n\x1a\n",
        _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        _chunk(b"PLTE", palette.numpy().tobytes()),
        _chunk(b"IDAT", zlib.compress(rows.numpy().tobytes(), 9)),
        _chunk(b"IEND", b""),
    ))  # fmt: skip


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def span(spectrograms: Sequence[Tensor]) -> tuple[float, float]:
    """What is drawn dark and bright: nearly the least and the greatest of all."""
    values = torch.cat([x[x.isfinite()].flatten() for x in spectrograms])
    low, high = values.quantile(torch.tensor([0.02, 0.998])).tolist() if len(values) < 2**24 else values.aminmax()
    return float(low), float(high)


@torch.no_grad()
def reconstructions(method: MAE, x: Tensor, keep: Tensor) -> tuple[bytes, str]:
    """What was seen, what was rebuilt of the rest, and the truth: x (B, T, F), keep (B, K). (PNG, caption)."""
    embed = method.encoder.embed
    assert isinstance(embed, SpectrogramPatches)
    device = next(method.parameters()).device
    prediction, _ = method.eval().rebuilt({"x": x.to(device), "keep": keep.to(device)})
    target, prediction = embed.target(x), prediction.cpu()
    if method.normalise:  # the mean and the spread of a patch are not told by the method: they are the true ones
        mean, std = target.mean(-1, keepdim=True), target.var(-1, keepdim=True).add(1e-6).sqrt()
        prediction = prediction * std + mean
    seen = marked(keep, target.shape[1])[..., None]
    shown = embed.picture(torch.where(seen, target, torch.nan))
    rebuilt = embed.picture(torch.where(seen, target, prediction))
    truth = embed.picture(target)
    low, high = span(list(truth))
    rows = [list(row) for row in zip(shown, rebuilt, truth, strict=True)]
    told = "What it saw, what it made of the rest, and the truth"
    more = "; level and contrast of a rebuilt patch are taken from the truth." if method.normalise else "."
    return sheet(rows, low, high), told + more


def player(sound: Tensor, rate: int, caption: str) -> str:
    """HTML that plays a sound (N,), which is in it as 16-bit WAV."""
    from html import escape

    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((sound.clamp(-1, 1) * 32767).round().to(torch.int16).numpy().tobytes())
    data = base64.b64encode(out.getvalue()).decode()
    return (
        f'<figure><audio controls preload="none" aria-label="{escape(caption)}" style="width:100%" '
        f'src="data:audio/wav;base64,{data}"></audio><figcaption>{escape(caption)}</figcaption></figure>'
    )
