"""Mugs, teapots and bottles."""

from itertools import pairwise

import numpy as np

from partwhole.shape3d.generate.solids import Dice, Solid, bar, bezier, mirrored, revolve, shell, tube

MUG = ("body", "handle", "saucer")
TEAPOT = ("body", "handle", "spout", "lid")
BOTTLE = ("body", "neck", "cap", "handle")


def _ear(
    dice: Dice, low: tuple[float, float], high: tuple[float, float], reach: float, thick: float, label: int
) -> Solid:
    """A handle in the plane z = 0 from (x, y) ``low`` to ``high``, ``reach`` beyond them: round, pointed or square."""
    (x0, y0), (x1, y1) = low, high
    out = max(x0, x1) + reach
    style = dice.pick("round", "round", "pointed", "square")
    if style == "square":
        corners = [(x0, y0), (out, y0), (out, y1), (x1, y1)]
        path = np.concatenate(
            [bezier([a, (np.array(a) + b) / 2, b], 3)[:-1] for a, b in pairwise(corners)] + [np.array(corners[-1:])]
        )
    elif style == "pointed":
        path = bezier([(x0, y0), (x0 + reach * 0.6, y0), (out + reach * 0.6, y1 + (y1 - y0) * 0.1), (x1, y1)], 10)
    else:
        path = bezier(
            [(x0, y0), (out + reach * 0.3, y0 - 0.1 * reach), (out + reach * 0.3, y1 + 0.1 * reach), (x1, y1)], 10
        )
    wide = thick * dice(0.9, 1.6)
    return tube(
        np.column_stack([path, np.zeros(len(path))]),
        np.tile([wide, thick], (len(path), 1)),
        label,
        sides=8,
        across=(0, 0, 1),
    )


def _radius(profile: list[tuple[float, float]], y: float) -> float:
    outline = np.array(profile)
    return float(np.interp(y, outline[:, 1], outline[:, 0]))


def mug(dice: Dice) -> list[Solid]:
    """Hollow: straight, tapered, bulging or stepped, with a handle or two, some on a saucer."""
    body, handle, saucer = range(3)
    height, wide = dice(0.7, 1.2), dice(0.36, 0.52)
    kind = dice.pick("straight", "taper", "bulge", "bowl")
    if kind == "straight":
        profile = [(wide * 0.94, 0.0), (wide, 0.05), (wide, height)]
    elif kind == "taper":
        profile = [(wide * dice(0.6, 0.85), 0.0), (wide * dice(1.0, 1.15), height)]
    elif kind == "bulge":
        profile = [
            (wide * 0.75, 0.0),
            (wide, height * 0.25),
            (wide * 1.08, height * 0.5),
            (wide * 0.9, height * 0.85),
            (wide, height),
        ]
    else:
        height *= 0.75
        profile = [(wide * 0.5, 0.0), (wide * 0.55, height * 0.1), (wide * 0.95, height * 0.35), (wide * 1.15, height)]
    wall = wide * dice(0.12, 0.22)
    sides = dice.count(10, 16)
    solids = [shell(profile, wall, body, sides=sides, floor=dice(0.08, 0.2) * height)]
    span = [height * dice(0.15, 0.32), height * dice(0.68, 0.9)]
    reach, thick = dice(0.22, 0.42), dice(0.04, 0.075)
    grip = _ear(dice, (_radius(profile, span[0]), span[0]), (_radius(profile, span[1]), span[1]), reach, thick, handle)
    grip = _flush(grip, profile, float(np.cos(np.pi / sides)))
    solids.append(grip)
    if dice.chance(0.15):
        solids.append(mirrored(grip))
    if dice.chance(0.35):
        plate, foot = wide * dice(1.5, 2.0), _radius(profile, 0.1) * 1.05
        rise = float(np.clip(grip.vertices[:, 1].min() - 0.01, -0.005, 0.06))  # below the handle
        rim = [(plate * 0.5, -0.1), (plate, rise - 0.03), (plate * 0.97, rise), (max(plate * 0.55, foot), -0.01)]
        solids.append(revolve(rim, saucer, sides=18))
    return solids


def _flush(grip: Solid, profile: list[tuple[float, float]], flat: float) -> Solid:
    """A handle whose two ends lie against the turned wall ``profile`` instead of running into it, a hair apart.

    ``flat``: the wall's radius at the middle of a side over that at a corner. A solid that runs into a thin wall makes
    CoACD remesh the whole mug: four times the time, twice the components.
    """
    vertices = grip.vertices.copy()
    ends = np.r_[0:8, -10:-2, -2, -1]  # the first ring, the last ring, the two middles
    vertices[ends, 0] = [_radius(profile, y) * flat + 0.004 for y in vertices[ends, 1]]
    return Solid(vertices, grip.faces, grip.labels)


def teapot(dice: Dice) -> list[Solid]:
    """Squat teapots and tall coffee pots: a curved or short spout, an ear or a bail, a lid with a knob."""
    body, handle, spout, lid = range(4)
    height, wide = dice(0.6, 1.3), dice(0.45, 0.62)
    belly, shoulder = dice(0.3, 0.55), dice(0.3, 0.6)
    profile = [
        (wide * dice(0.5, 0.8), 0.0),
        (wide * 0.92, height * belly * 0.5),
        (wide, height * belly),
        (wide * 0.9, height * (belly + 1) / 2),
        (wide * shoulder, height),
    ]
    mouth, rise = wide * shoulder, dice(0.05, 0.2)
    cover = [(mouth * 0.85, height + rise * 0.6), (mouth * 0.25, height + rise)]
    knob = dice(0.05, 0.09)
    knobs = [
        (knob * 0.6, height + rise + knob * 0.4),
        (knob * 1.1, height + rise + knob),
        (knob * 0.5, height + rise + knob * 1.8),
    ]
    # the lid is the upper end of the same turned surface: nothing but the crease tells where it begins
    solids = [revolve(profile + cover + knobs, [body] * 4 + [lid] * 5, sides=16)]
    if dice.chance(0.3):
        foot = wide * 0.7
        solids.append(revolve([(foot, -0.06), (foot * 0.85, 0.05)], body, sides=16))
    start = height * dice(0.2, 0.45)
    root = _radius(profile, start) * 0.8
    tip = (wide + dice(0.3, 0.55), height * dice(0.85, 1.1))
    if dice.chance(0.7):
        path = bezier([(root, start), (wide + 0.3, start), (wide + 0.1, tip[1]), tip], 9)
    else:
        start, root = height * 0.7, _radius(profile, height * 0.7) * 0.75
        path = bezier(
            [(root, start), (wide + 0.05, start + 0.08), (wide + dice(0.12, 0.25), height * dice(0.95, 1.1))], 5
        )
    sizes = np.linspace(dice(0.12, 0.2), dice(0.04, 0.07), len(path))
    solids.append(tube(np.column_stack([path, np.zeros(len(path))]), sizes, spout, sides=9, across=(0, 0, 1)))
    thick = dice(0.035, 0.06)
    if dice.chance(0.7):
        feet = [(_radius(profile, y) * 0.93, y) for y in (height * dice(0.15, 0.35), height * dice(0.75, 0.92))]
        grip = _ear(dice, feet[0], feet[1], dice(0.25, 0.45), thick, handle)
        solids.append(Solid(grip.vertices * [-1, 1, 1], grip.faces[:, ::-1].copy(), grip.labels))
    else:
        y = height * 0.9
        side, up = _radius(profile, y) * 0.9, height * dice(1.7, 2.3)
        arch = bezier([(0, y, side), (0, up, side * 1.6), (0, up, -side * 1.6), (0, y, -side)], 12)
        solids.append(tube(arch, thick, handle, sides=7))
    return solids


def bottle(dice: Dice) -> list[Solid]:
    """One turned or squared surface with body, neck and cap; round, flat, with a waist, some with a grip."""
    body, neck, cap, handle = range(4)
    wide, height = dice(0.25, 0.42), dice(0.8, 1.2)
    narrow, long = wide * dice(0.25, 0.55), dice(0.15, 0.5)
    waist = dice(0.75, 1.0)
    slope = dice(0.08, 0.3)
    profile = [
        (wide * 0.85, 0.0),
        (wide, 0.05),
        (wide * waist, height * 0.5),
        (wide, height * 0.8),
        (narrow * 1.15, height * 0.8 + slope),
        (narrow, height * 0.8 + slope + long),
    ]
    top = profile[-1][1]
    lip, tall = narrow * dice(1.02, 1.5), dice(0.08, 0.18)
    style = dice.pick("screw", "cork", "pump", "screw")
    labels = [body] * 4 + [neck]
    shape = {"power": dice.pick(2.0, 2.0, 4.0), "stretch": (1.0, dice(0.55, 1.0) if dice.chance(0.4) else 1.0)}
    solids = [revolve(profile, labels, sides=16, **shape)]
    if style == "cork":
        solids.append(revolve([(narrow * 0.75, top - 0.06), (narrow * 0.85, top + tall)], cap, sides=10))
    else:
        solids.append(
            revolve([(lip, top - tall * 0.4), (lip, top + tall * 0.7), (lip * 0.7, top + tall * 0.8)], cap, sides=12)
        )
    if style == "pump":
        solids.append(bar((0, top + tall * 0.5, 0), (0, top + tall * 0.8 + 0.14, 0), 0.035, cap, sides=7))
        y = top + tall * 0.8 + 0.15
        solids.append(
            tube(
                bezier([(-0.08, y, 0), (0.15, y + 0.02, 0), (0.32, y - 0.06, 0)], 5),
                np.linspace(0.06, 0.03, 5),
                cap,
                sides=7,
                across=(0, 0, 1),
            )
        )
    if dice.chance(0.3):
        y0, y1 = height * dice(0.3, 0.5), height * 0.8 + slope + long * dice(0.3, 0.7)
        solids.append(_ear(dice, (wide * 0.85, y0), (narrow * 0.8, y1), dice(0.12, 0.2), dice(0.03, 0.05), handle))
    return solids


BUILDERS = {"mug": (MUG, mug), "teapot": (TEAPOT, teapot), "bottle": (BOTTLE, bottle)}
