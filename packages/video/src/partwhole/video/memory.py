"""Videos in memory: what a reader gives of a file, of tensors.

Axes: T frames, H W pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class Frames:
    """A video of x (T, 3, H, W) uint8, at ``fps`` frames a second."""

    def __init__(self, x: Tensor, *, fps: float = 25.0, name: str = "frames"):
        if x.dtype != torch.uint8 or x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape:
            raise ValueError(
                f"a video is {x.dtype} {tuple(x.shape)}: uint8 (T, 3, H, W), of one frame or more, is needed"
            )
        if not fps > 0:
            raise ValueError(f"fps is {fps}: frames a second are above 0")
        self.x, self.fps, self.name = x, fps, name

    def __len__(self) -> int:
        return len(self.x)

    @property
    def size(self) -> tuple[int, int]:
        return self.x.shape[2], self.x.shape[3]

    def times(self) -> Tensor:
        """When each frame is shown, in seconds: (T,) float64."""
        return torch.arange(len(self), dtype=torch.float64) / self.fps

    def frames(self, indices: Sequence[int]) -> Tensor:
        """The frames of these numbers, in this order: (len(indices), 3, H, W) uint8."""
        return self.x[checked(indices, len(self), self.name)]


class Ids:
    """The objects of a video's frames, x (T, H, W) int: 0 is background, 255 is not counted, the others are objects."""

    def __init__(self, x: Tensor, *, name: str = "ids"):
        if x.is_floating_point() or x.ndim != 3 or 0 in x.shape:
            raise ValueError(
                f"masks are {x.dtype} {tuple(x.shape)}: integers (T, H, W), of one frame or more, are needed"
            )
        self.x, self.name = x, name

    def __len__(self) -> int:
        return len(self.x)

    @property
    def size(self) -> tuple[int, int]:
        return self.x.shape[1], self.x.shape[2]

    def frames(self, indices: Sequence[int]) -> Tensor:
        """(len(indices), H, W) int64."""
        return self.x[checked(indices, len(self), self.name)].long()


def checked(indices: Sequence[int], length: int, name: str) -> list[int]:
    """The indices as plain numbers; IndexError where a video of so many frames has no such frame."""
    plain = [int(i) for i in indices]
    if wrong := [i for i in plain if not 0 <= i < length]:
        raise IndexError(f"{name} has frames 0 to {length - 1}, and no frame {wrong[0]}")
    return plain
