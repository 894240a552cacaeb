"""Recipes for images: core's methods, and the pretext tasks of images."""

from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from partwhole.core import catalog
from partwhole.core.data import Stream, View, some
from partwhole.core.method import Method
from partwhole.vision import colorization, context, jigsaw, rotation
from partwhole.vision.draw import Picture
from partwhole.vision.network import Network
from partwhole.vision.pretext import held_out
from partwhole.vision.recipe import ImageRecipe, Own, Policy
from partwhole.vision.sees import on_images
from partwhole.vision.study import Augmentations

SHOWN = 8  # images in a picture


@dataclass(frozen=True, kw_only=True)
class Pretext(ImageRecipe, ABC):
    """Asks of an image what is known of it by itself: it makes views of its own, by no policy."""

    policy: ClassVar[Policy] = "plain"  # type: ignore[misc]  # so it is no field: there would be nothing it changes

    def streamed(self, samples: Sequence[Any], view: View, after: Any = None) -> Stream:
        return self.one_by_one(samples, view)

    picture: ClassVar[Callable[..., bytes]]
    caption: ClassVar[str]

    def own(self, method: Method, samples: Sequence[Any]) -> Own:
        view = self.view(method.encoder)
        picture = type(self).picture(method, view, some(samples, SHOWN))
        return Own(held_out(method, view, samples), Picture(picture, self.caption))


def pretext(kind: Any, module: Any, caption: str, network: Network | None = None) -> Any:
    """A pretext task as a recipe for images; with a network of its own by default."""
    about = {"__doc__": kind.__doc__, "__module__": __name__, "picture": staticmethod(module.picture)}
    own: dict[str, Any] = {} if network is None else {"network": network, "__annotations__": {"network": Network}}
    made = type(kind.__name__, (kind, Pretext), {**about, "caption": caption, **own})
    return dataclass(frozen=True, kw_only=True)(made)


TASKS = {
    "augmentations": Augmentations,
    "colorization": pretext(
        colorization.Colorization,
        colorization,
        "What it saw, what it painted, and the truth. Images of the test part.",
        Network(name="vit", cls=False),  # the map of a ResNet is coarse; and it trains a map, nothing of the whole
    ),
    "context": pretext(
        context.Context, context, "Two tiles, the second where it was put, and the truth. Images of the test part."
    ),
    "jigsaw": pretext(jigsaw.Jigsaw, jigsaw, "Puzzles, as they were solved, and the truth. Images of the test part."),
    "rotation": pretext(
        rotation.Rotation, rotation, "What it saw, turned back by its answer, and the truth. Images of the test part."
    ),
    **{name: on_images(kind) for name, kind in catalog.METHODS.items()},
}
