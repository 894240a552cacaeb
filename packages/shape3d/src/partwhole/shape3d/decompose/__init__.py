"""Approximate convex decomposition of many shapes: engines, killable processes, a cache."""
