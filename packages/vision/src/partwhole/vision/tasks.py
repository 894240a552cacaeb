"""Recipes for images: core's methods, and the pretext tasks of images."""

from partwhole.core import catalog
from partwhole.vision.sees import on_images

TASKS = {name: on_images(kind) for name, kind in catalog.METHODS.items()}
