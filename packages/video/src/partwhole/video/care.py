"""What is odd about a run on clips, seen before its first step: sentences for a person."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from partwhole.core.data import some

if TYPE_CHECKING:
    from partwhole.video.recipe import ClipRecipe

LOOKED = 64  # clips whose length is looked at


def odd(recipe: "ClipRecipe", clips: Sequence[Any]) -> Iterator[str]:
    """What may be otherwise than it was meant."""
    batch, network, side = recipe.batch, recipe.network, recipe.side
    if len(clips) < batch:
        yield (
            f"careful: a step of {batch} clips sees each of the {len(clips)} several times, and what tells clips from "
            "each other takes its copies for others: lower --batch"
        )
    if batch == 1:
        yield (
            "careful: a step of one clip has no other to compare it with, and nothing to normalise over: most methods "
            "need a --batch of 2 or more"
        )
    if network.name == "vit" and (rest := side % network.patch):
        name = "size" if side == recipe.size else "walk.patch"
        yield (
            f"careful: {side} pixels are {side // network.patch} patches of {network.patch} a side; the last {rest} "
            f"rows and columns are not seen. Let --network.patch divide --{name}"
        )
    if stride := getattr(recipe, "stride", None):
        long: int = recipe.long  # type: ignore[attr-defined]  # as what has a stride
        wanted, seen = (long - 1) * stride + 1, some(clips, LOOKED)
        if near := sum(len(sample["video"]) < wanted for sample in seen):
            yield (
                f"careful: {near} of {len(seen)} clips that were looked at are shorter than the {wanted} frames that "
                f"{long} of them take with --stride {stride}: there they are taken nearer together"
            )
    if tube := getattr(recipe, "tube", None):
        frames: int = recipe.frames  # type: ignore[attr-defined]
        if rest := frames % tube:
            yield (
                f"careful: {frames} frames are {frames // tube} tubes of {tube}, and the last {rest} are not seen: let "
                "--tube divide --frames"
            )
    for name, why in recipe.unused():
        yield f"careful: --{name} changes nothing: {why}"
