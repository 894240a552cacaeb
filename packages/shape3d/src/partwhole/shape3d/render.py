"""Pictures of point clouds without a graphics card: every point is a small disc in the surface's tangent plane.

Letters: P points, S side of the picture in pixels. Orthographic, y is up. ``viewer.html`` draws in the same way.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from partwhole.core import files

# Twelve colours for parts and components, in an order in which neighbours differ in lightness as well as hue, so that
# they are told apart by colour-blind readers and on a dark or a light ground.
PALETTE = np.array(
    [
        [0, 119, 187],
        [238, 136, 51],
        [0, 132, 102],
        [236, 120, 172],
        [86, 190, 235],
        [168, 62, 40],
        [224, 190, 60],
        [84, 54, 140],
        [150, 180, 70],
        [120, 80, 60],
        [200, 160, 215],
        [70, 105, 110],
    ],
    np.uint8,
)
UNKNOWN = np.array([150, 152, 156], np.uint8)
RIGHT, WRONG = np.array([120, 160, 190], np.uint8), np.array([214, 64, 32], np.uint8)
ERROR = "error"  # the layer's name: 0 right, 1 wrong, -1 unknown
YAW, PITCH = 35.0, 22.0


def colours(labels: np.ndarray, layer: str = "") -> np.ndarray:
    """Colours (P, 3) uint8 of labels (P,); negative labels are unknown and grey; the layer "error" has its own two."""
    labels = np.asarray(labels).astype(np.int64)
    if layer == ERROR:
        return np.where((labels < 0)[:, None], UNKNOWN, np.where((labels > 0)[:, None], WRONG, RIGHT))
    return np.where((labels < 0)[:, None], UNKNOWN, PALETTE[labels % len(PALETTE)])


def surface(points: np.ndarray, neighbours: int = 9) -> tuple[np.ndarray, float]:
    """Normals (P, 3) of the plane through each point's neighbours, sign arbitrary, and the radius at which discs close.

    Repeated points are no neighbours of use: the radius is at least a thousandth of the cloud's.
    """
    from scipy.spatial import KDTree

    count = len(points)
    reach = float(np.linalg.norm(points, axis=1).max(initial=0.0)) or 1.0
    if count < 4:
        return np.tile(np.array([0, 0, 1], np.float32), (count, 1)), reach / 20
    k = min(neighbours, count)
    distance, index = KDTree(points).query(points, k=k)
    near = points[index] - points[index].mean(1, keepdims=True)
    _, axes = np.linalg.eigh(near.transpose(0, 2, 1) @ near)
    normals = axes[:, :, 0].astype(np.float32)
    for _ in range(2):  # smoothed among neighbours that agree, or thin walls and legs look crumpled
        alike = np.einsum("pi,pki->pk", normals, normals[index])
        normals = np.einsum("pk,pki->pi", alike * alike * alike, normals[index])
        normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    return normals, max(float(np.median(distance[:, min(6, k - 1)])), reach / 1000)


def turn(yaw: float = YAW, pitch: float = PITCH) -> np.ndarray:
    """The rotation (3, 3) to the viewer's axes (right, up, towards the viewer); degrees."""
    a, b = np.radians(yaw), np.radians(pitch)
    about_y = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    return about_x @ about_y


def raster(
    points: np.ndarray, normals: np.ndarray, radius: float, *, size: int, rotation: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Which point is seen at each pixel, and how light it is there.

    Args:
        points, normals: (P, 3); the sign of a normal does not matter.
        radius: of the discs, in the units of the points.
        size: side of the picture in pixels; the shape is centred and fills it.
        rotation: (3, 3), :func:`turn` by default.

    Returns:
        index (S, S) int32, -1 where there is nothing, and light (S, S) float32 in [0, 1].
    """
    rotation = turn() if rotation is None else rotation
    p, n = (np.asarray(a, np.float32) @ rotation.T.astype(np.float32) for a in (points, normals))
    n = np.where(n[:, 2:] < 0, -n, n)
    low, high = p[:, :2].min(0) - radius, p[:, :2].max(0) + radius
    scale = (size - 2) / max(float((high - low).max()), 1e-6)
    at = (p[:, :2] - (low + high) / 2) * scale
    at = at * np.array([1, -1], np.float32) + size / 2
    steep = np.maximum(n[:, 2:], 0.2)  # a disc seen on edge still covers a little
    slope = n[:, :2] / steep * np.array([1, -1], np.float32)
    r = min(max(radius * scale, 0.75), size / 16)

    index = np.full(size * size, -1, np.int32)
    height = np.full(size * size, -np.inf, np.float32)
    order = np.argsort(p[:, 2])  # back to front: of points that fall on one pixel, the last one written is the nearest
    at, slope, deep = at[order], slope[order], p[order, 2] * scale
    column, row = np.floor(at).astype(np.int64).T
    near = np.floor(at) + np.float32(0.5) - at
    reach = int(np.ceil(r))
    for oy in range(-reach, reach + 1):
        for ox in range(-reach, reach + 1):
            if ox * ox + oy * oy > (r + 0.7) ** 2:
                continue
            dx, dy = near[:, 0] + ox, near[:, 1] + oy
            dz = -(slope[:, 0] * dx + slope[:, 1] * dy)
            far = dx * dx + dy * dy + dz * dz
            x, y = column + ox, row + oy
            # Discs are domed a little, so that overlapping ones meet halfway between their points.
            depth = deep + dz - far * np.float32(0.4 / r)
            pixel = np.clip(y * size + x, 0, size * size - 1)
            inside = (far <= r * r) & (x >= 0) & (x < size) & (y >= 0) & (y < size) & (depth > height[pixel])
            pixel = pixel[inside]
            index[pixel] = order[inside]
            height[pixel] = depth[inside]
    toward = n @ np.array([-0.32, 0.52, 0.79], np.float32)
    light = np.where(index >= 0, 0.5 + 0.5 * np.maximum(toward, 0)[index], 0)
    return index.reshape(size, size), (light.reshape(size, size) * _crevices(height.reshape(size, size), size / 80))


def _crevices(height: np.ndarray, step: float) -> np.ndarray:
    """Darkening (S, S) of pixels that lie behind their surroundings: depth is read without perspective."""
    s = max(round(step), 1)
    side = height.shape[0]
    wide = np.pad(height, s, constant_values=-np.inf)
    behind = np.zeros_like(height)
    for dy, dx in ((-s, 0), (s, 0), (0, -s), (0, s)):
        other = wide[s + dy : s + dy + side, s + dx : s + dx + side]
        gap = np.subtract(other, height, out=np.zeros_like(height), where=np.isfinite(other) & np.isfinite(height))
        behind += np.clip(gap / (s * 3) - 0.5, 0, 2)
    return np.exp(-0.28 * behind)


def paint(index: np.ndarray, light: np.ndarray, colour: np.ndarray, *, shrink: int = 2) -> np.ndarray:
    """The picture (S / shrink, S / shrink, 4) uint8, on a clear ground, of a :func:`raster`; colour (P, 3)."""
    seen = index >= 0
    rgba = np.zeros((*index.shape, 4), np.float32)
    rgba[seen, :3] = np.minimum(colour[index[seen]].astype(np.float32) * light[seen, None] * 1.06, 255)
    rgba[seen, 3] = 1
    side = index.shape[0] // shrink
    small = rgba[: side * shrink, : side * shrink].reshape(side, shrink, side, shrink, 4).mean((1, 3))
    small[..., :3] /= np.maximum(small[..., 3:], 1e-6)
    small[..., 3] *= 255
    return np.rint(small).astype(np.uint8)


def pictures(
    points: np.ndarray,
    layers: dict[str, np.ndarray],
    *,
    normals: np.ndarray | None = None,
    size: int = 220,
    rotation: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """One picture (size, size, 4) for each layer of labels; the geometry is drawn once."""
    found, radius = surface(points)
    if normals is not None and np.linalg.norm(normals, axis=1).min(initial=1) > 0.5:
        found = normals
    index, light = raster(points, found, radius, size=2 * size, rotation=rotation)
    return {name: paint(index, light, colours(labels, name)) for name, labels in layers.items()}


def png(picture: np.ndarray) -> bytes:
    """PNG bytes of a picture (H, W, 4) uint8, with 255 colours: a third of the size, and no visible loss."""
    from PIL import Image

    out = io.BytesIO()
    image = Image.fromarray(picture).quantize(255, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


def sheet(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
    """Pictures of one size in rows, put together on a clear ground."""
    width = max(len(r) for r in rows)
    clear = np.zeros_like(rows[0][0])
    return np.concatenate([np.concatenate([*r, *[clear] * (width - len(r))], 1) for r in rows], 0)


def write_ply(path: Path | str, points: np.ndarray, colour: np.ndarray, *, labels: np.ndarray | None = None) -> Path:
    """Write a coloured point cloud as binary PLY, whole or not at all; MeshLab, Blender and trimesh read it.

    Args:
        path: of the file; its folder is made when it is missing.
        points: (P, 3).
        colour: (P, 3) uint8.
        labels: (P,) integers, written as the property "label".

    Raises:
        ValueError: the arrays do not go together.
    """
    path = Path(path)
    points, colour = np.asarray(points), np.asarray(colour)
    if points.ndim != 2 or points.shape[1] != 3 or colour.shape != points.shape:
        raise ValueError(f"points and colour must both be (P, 3), got {points.shape} and {colour.shape}")
    if colour.dtype != np.uint8:
        raise ValueError(f"colour must be uint8 (0 to 255), got {colour.dtype}")
    if labels is not None and np.shape(labels) != (len(points),):
        raise ValueError(f"labels must be ({len(points)},), one for each point, got {np.shape(labels)}")
    kinds = [(axis, "<f4") for axis in "xyz"] + [(name, "u1") for name in ("red", "green", "blue")]
    kinds += [("label", "<i4")] if labels is not None else []
    rows = np.empty(len(points), np.dtype(kinds))
    for i, axis in enumerate("xyz"):
        rows[axis] = points[:, i]
    for i, name in enumerate(("red", "green", "blue")):
        rows[name] = colour[:, i]
    if labels is not None:
        rows["label"] = labels
    names = {"<f4": "float", "u1": "uchar", "<i4": "int"}
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(rows)}"]
    header += [f"property {names[kind]} {name}" for name, kind in kinds] + ["end_header", ""]
    content = "\n".join(header).encode() + rows.tobytes()
    files.write(path, lambda file: file.write(content))
    return path
