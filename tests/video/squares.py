"""Clips for tests: a chequered square moves over a chequered ground, of colours that are random."""

import torch

from partwhole.video.clips import Clips


class Squares:
    """A video in memory; frame t is at ``start + t / fps`` seconds."""

    def __init__(self, seed=0, *, frames=8, high=48, wide=56, fps=8.0, still=False, times=None):
        draw = torch.Generator().manual_seed(seed)
        self.fps, self.name, self.size = fps, f"squares {seed}", (high, wide)
        cells = torch.randint(256, (3, high // 8 + 1, wide // 8 + 1), generator=draw, dtype=torch.uint8)
        ground = cells.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, :high, :wide]
        square = torch.randint(256, (3, 4, 4), generator=draw, dtype=torch.uint8)
        square = square.repeat_interleave(4, 1).repeat_interleave(4, 2)
        self.x = ground.repeat(frames, 1, 1, 1)
        for t in range(frames):
            left = 0 if still else 2 * t % (wide - 16)
            self.x[t, :, 10:26, left : left + 16] = square
        self.at = torch.arange(frames, dtype=torch.float64) / fps if times is None else torch.tensor(times).double()
        self.read = []

    def __len__(self):
        return len(self.x)

    def times(self):
        return self.at

    def frames(self, indices):
        self.read.append(list(indices))
        return self.x[list(indices)]


def clips(count=8, **how):
    return together([Squares(seed, **how) for seed in range(count)])


def together(videos):
    """Some videos as samples."""
    return Clips([{"video": video} for video in videos], [video.name for video in videos], key="squares")
