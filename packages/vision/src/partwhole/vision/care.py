"""What is odd about a run on images, seen before its first step: told where it can go on, refused where it cannot."""

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from partwhole.core.data import some
from partwhole.core.encoder import Encoder
from partwhole.vision.images import Images
from partwhole.vision.pack import Decoded

if TYPE_CHECKING:
    from partwhole.vision.recipe import ImageRecipe

LOOKED = 64  # images whose size is looked at


def odd(recipe: "ImageRecipe", images: Images) -> Iterator[str]:
    """Sentences for a person."""
    from partwhole.vision.recipe import ImageRecipe

    batch, size, network = recipe.batch, recipe.size, recipe.network
    if len(images) < batch:
        yield (
            f"careful: a step of {batch} images sees each of the {len(images)} several times, and takes its "
            "copies for others: lower --batch"
        )
    if batch == 1:
        yield (
            "careful: a step of one image has no other to compare it with, and nothing to normalise over: most methods "
            "need a --batch of 2 or more"
        )
    shorter = [min(sample["image"].shape[1:]) for sample in some(images, LOOKED)]
    if small := sum(side < size for side in shorter):
        yield (
            f"careful: {small} of {len(shorter)} images that were looked at are smaller than the {size} pixels that "
            f"the network sees, the smallest has {min(shorter)} a side: they are enlarged, and show no more for it. "
            "A lower --size costs less"
        )
    if network.name == "vit" and (rest := size % network.patch):
        yield (
            f"careful: {size} pixels are {size // network.patch} patches of {network.patch} a side; the last {rest} "
            "rows and columns are not seen. Let --network.patch divide --size"
        )
    if recipe.source.views == "device" and type(recipe).streamed is not ImageRecipe.streamed:
        name = type(recipe).__name__
        yield f"careful: --source.views device changes nothing: {name} makes views of its own, one by one"
    if recipe.annotated is not None and type(recipe).finish is not ImageRecipe.finish:
        yield f"careful: --annotated changes nothing: {type(recipe).__name__} measures by labels alone"
    if unused := network.unused(type(recipe).network):
        names = ", ".join(f"--network.{name}" for name in unused)
        yield f"careful: {names} changes nothing: it is for another network than --network.name {network.name}"


def faster(recipe: "ImageRecipe", images: Images) -> str:
    """What would let the loop wait less for data."""
    from partwhole.vision.recipe import ImageRecipe

    source, ways = recipe.source, []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if source.loaders < cores:
        ways.append(f"raise --source.loaders, of which there are {source.loaders}, to as many as {cores}")
    if source.views == "samples" and type(recipe).streamed is ImageRecipe.streamed:
        ways.append("make views on the device with --source.views device")
    if isinstance(getattr(images.pixels, "pixels", images.pixels), Decoded):
        ways.append("raise --source.memory, so that images are kept decoded")
    return f"{', or '.join(ways)}".capitalize() if ways else "The images are read as fast as they can be"


def try_out(recipe: "ImageRecipe", encoder: Encoder, images: Images) -> None:
    """ValueError, if the encoder does not take all that a step shows it. No generator moves."""
    training = encoder.training
    with torch.random.fork_rng(devices=()), torch.no_grad():
        seen = {x.shape[-1]: x for x in _pictures(recipe.shown(encoder)(images[0]))}
        encoder.eval()
        try:
            for side, x in sorted(seen.items()):
                try:
                    encoder(x)
                except (AssertionError, RuntimeError, ValueError) as error:
                    raise ValueError(
                        f"{recipe.network.name} takes no images of {side} pixels a side, which {type(recipe).__name__} "
                        f"shows it where --size is {recipe.size} ({error}). Raise --size, or choose smaller patches or "
                        "another network" + (", or --crops 0" if hasattr(recipe, "crops") and len(seen) > 1 else "")
                    ) from error
        finally:
            encoder.train(training)


def _pictures(seen: Any) -> Iterator[Tensor]:
    """One picture (1, 3, S, S) of each x in what a view gives."""
    if isinstance(seen, Mapping):
        seen = list(seen.values())
    if isinstance(seen, list | tuple):
        for part in seen:
            yield from _pictures(part)
    elif isinstance(seen, Tensor) and seen.ndim >= 3 and seen.shape[-3] == 3:
        yield seen.flatten(0, -4)[:1] if seen.ndim > 3 else seen[None]
