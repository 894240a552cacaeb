"""Approximate convex decomposition of many shapes: engines, killable processes, a cache."""

from partwhole.shape3d.decompose.cache import CacheError
from partwhole.shape3d.decompose.engines import Decompose
from partwhole.shape3d.decompose.packed import Prepared, load, restore
from partwhole.shape3d.decompose.prepare import prepare

__all__ = ["CacheError", "Decompose", "Prepared", "load", "prepare", "restore"]
