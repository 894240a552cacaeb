"""Lamps."""

import numpy as np

from partwhole.shape3d.generate.solids import Dice, Solid, bar, bezier, box, revolve, shell, tube, turned, vec

LAMP = ("base", "pole", "shade")


def lamp(dice: Dice) -> list[Solid]:
    """Table, floor, arched and jointed lamps: a foot or a vase, a pole, a cone, dome, drum or globe."""
    base, pole, shade = range(3)
    kind = dice.pick("table", "table", "floor", "arc", "desk")
    solids: list[Solid] = []
    wide = dice(0.16, 0.3)
    foot = dice.pick("disk", "block", "tripod" if kind == "floor" else "vase", "vase" if kind == "table" else "dome")
    thin = dice(0.018, 0.035)
    height = {"table": dice(0.5, 0.8), "floor": dice(1.2, 1.8), "arc": dice(1.1, 1.6), "desk": dice(0.5, 0.8)}[kind]
    gap, stand = 0.004, 0.07  # a hair between foot, pole and shade: nothing to see, and CoACD needs no slow remeshing
    if foot == "disk":
        solids.append(revolve([(wide, 0), (wide, 0.03), (wide * 0.3, stand)], base, sides=16))
    elif foot == "block":
        solids.append(box((0, 0.035, 0), (wide * 1.8, 0.07, wide * 1.8), base, bevel=0.01))
    elif foot == "dome":
        solids.append(
            revolve([(wide, 0), (wide * 0.95, 0.05), (wide * 0.65, 0.11), (wide * 0.2, 0.15)], base, sides=14)
        )
        stand = 0.15
    elif foot == "tripod":
        stand = height * dice(0.3, 0.75)
        for angle in np.arange(3) / 3 * 2 * np.pi + dice(0, 1):
            end = (wide * 1.5 * np.cos(angle), 0, wide * 1.5 * np.sin(angle))
            solids.append(bar((0, stand, 0), end, thin * 1.1, base, tip=0.8, sides=6))
    else:
        stand = height * dice(0.5, 0.75)
        neck = dice(0.2, 0.45)
        belly = [(0.55, 0), (0.6, 0.04), (dice(0.7, 1.1), dice(0.25, 0.4)), (0.8, 0.6), (neck, 0.92), (neck, 1.0)]
        solids.append(revolve([(wide * r, stand * y) for r, y in belly], base, sides=14))
    if kind == "desk":
        elbow = vec(0, stand + height * dice(0.5, 0.7), -dice(0.15, 0.35))
        tip = elbow + vec(0, dice(-0.05, 0.25), dice(0.45, 0.7))
        start = vec(0, stand + gap, 0)
        path = np.stack([start, start + vec(0, thin, 0), elbow, (elbow + tip) / 2, tip])
        solids.append(tube(path, thin, pole, sides=7))
    elif kind == "arc":
        reach = dice(0.5, 0.9)
        path = bezier(
            [(0, stand + gap, 0), (0, height * 1.25, -0.1), (0, height * 1.2, reach), (0, height * 0.8, reach)], 12
        )
        solids.append(tube(path, thin, pole, sides=6))
        tip = path[-1]
    else:
        tip = vec(0, height, 0)
        profile = [(thin, stand + gap), (thin * dice(0.8, 1.0), height)]
        if foot != "vase" and dice.chance(0.3):
            middle = (stand + height) / 2
            profile[1:1] = [(thin, middle - 0.05), (max(0.055, 2 * thin), middle), (thin, middle + 0.05)]
        solids.append(revolve(profile, pole, sides=8))
    hanging = kind in ("desk", "arc")
    size = dice(0.16, 0.24) if hanging else dice(0.22, 0.36)
    tall = size * dice(0.8, 1.4)
    form = dice.pick("cone", "dome", "drum", "globe")
    wall = size * dice(0.1, 0.16)
    if form == "globe":
        angles = np.linspace(-0.92, 0.92, 8) * np.pi / 2
        part = revolve([(size * 0.75 * np.cos(a), size * 0.75 * np.sin(a)) for a in angles], shade, sides=14)
        drop = size * 0.75 + gap
        drop = -drop if hanging else drop
    else:  # upside-down cups: the closed end where the pole comes in
        outline = {
            "cone": [(dice(0.35, 0.6), 0), (1.0, 1)],
            "drum": [(dice(0.8, 1.0), 0), (1.0, 1)],
            "dome": [(0.3, 0), (0.75, 0.25), (0.95, 0.6), (1.0, 1)],
        }[form]
        part = shell([(size * r, tall * y) for r, y in outline], wall, shade, sides=14, floor=wall * 1.3)
        part = Solid(part.vertices * [1, -1, 1], part.faces[:, ::-1].copy(), part.labels)
        drop = -thin - gap if hanging else max(wall * 1.3 + gap, tall * dice(0.05, 0.25))
    part = Solid(part.vertices + vec(0, drop, 0), part.faces, part.labels)
    if kind == "desk" and form != "globe":  # looks down and forward
        part = turned(part, -dice(15, 50), axis=0)
    solids.append(Solid(part.vertices + tip, part.faces, part.labels))
    return solids


BUILDERS = {"lamp": (LAMP, lamp)}
