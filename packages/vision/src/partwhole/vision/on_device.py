"""Views made on the device, a batch at a time, of what the data workers drew for each."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from partwhole.core import data
from partwhole.core.data import Batches, View
from partwhole.vision.views import Size, check


@dataclass(frozen=True)
class Deferred:
    """A view of which all that is random is drawn now, and no x made: for ``OnDevice``.

    The view may be any around ``views.Random`` that puts x into what it gives without looking at it: ``Looks``,
    ``core.sees.Hiding`` and most others; not those that need tokens of x (``Masked`` with a tokenizer, ``Blocks``).
    What needs them can be done ``after`` (``OnDevice``).
    An image goes with the batch once, however many views are made of it.
    """

    view: View

    def __call__(self, sample: Any) -> dict[str, Any]:
        found: list[Tensor] = []
        seen = self.view(_without_image(sample, found))
        if len(found) != 1:
            raise ValueError(f"a sample holds {len(found)} images; expected one, at its key 'image'")
        # as a row of bytes: images of several sizes can be put together
        return {"pixels": found[0].flatten(), "size": torch.tensor(found[0].shape[1:]), "seen": seen}


def _without_image(sample: Any, found: list[Tensor]) -> Any:
    """The sample with the size of its image in the place of it."""
    if isinstance(sample, tuple):
        return tuple(_without_image(part, found) for part in sample)
    if not isinstance(sample, Mapping) or "image" not in sample:
        return sample
    image = sample["image"]
    check(image)
    found.append(image)
    return {**sample, "image": Size(*image.shape[1:])}


class OnDevice:
    """The batches of a stream of ``Deferred`` views, with x made on the device: the same as the view alone gives.

    OnDevice(Stream(samples, Deferred(view), batch=64), "cuda") yields what Stream(samples, view, batch=64) does.
    ``after`` makes of a batch what the method gets, where that needs x.
    """

    def __init__(
        self, stream: Batches, device: torch.device | str, after: Callable[[dict[str, Any]], Any] | None = None
    ):
        self.stream, self.device, self.after = stream, torch.device(device), after

    @property
    def batch(self) -> int:
        """Things in a batch, over all processes."""
        return self.stream.batch  # type: ignore[attr-defined]

    def __call__(self, start: int = 0, /) -> Iterator[Any]:
        return (self.made(batch) for batch in self.stream(start))

    def describe(self, step: int) -> str:
        """Batch ``step`` in words, for messages."""
        return data.describe(self.stream, step)

    def made(self, batch: Mapping[str, Any]) -> Any:
        """A batch of deferred views with x in it."""
        if "seen" not in batch:
            raise ValueError(f"a batch holds {sorted(batch)}: its view is not ``Deferred``")
        sizes = [tuple(size) for size in batch["size"].tolist()]
        pixels = batch["pixels"].to(self.device, non_blocking=True)
        if len(set(sizes)) == 1:
            images = pixels.view(-1, 3, *sizes[0])
        else:
            images = [row[: 3 * h * w].view(3, h, w) for row, (h, w) in zip(pixels, sizes, strict=True)]
        seen = _made(batch["seen"], images)
        return seen if self.after is None else self.after(seen)


def _made(seen: Any, images: Any) -> Any:
    if isinstance(seen, Mapping):
        if "drawn" in seen:
            return seen["of"][0].apply(images, seen["drawn"])  # the same for all of a batch
        return {name: _made(value, images) for name, value in seen.items()}
    return [_made(value, images) for value in seen] if isinstance(seen, list) else seen
