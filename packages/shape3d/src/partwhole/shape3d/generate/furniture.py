"""Chairs, tables and beds. Each builder draws a style and proportions, and returns labelled solids."""

import numpy as np

from partwhole.shape3d.generate.solids import (
    SQUARE,
    Dice,
    Solid,
    bar,
    bezier,
    both,
    box,
    loft,
    post,
    revolve,
    tube,
    vec,
)

CHAIR = ("back", "seat", "leg", "arm")
TABLE = ("top", "leg", "shelf", "drawer")
BED = ("frame", "mattress", "headboard", "pillow", "leg")


def _corners(width: float, depth: float) -> list[tuple[float, float]]:
    return [(sx * width / 2, sz * depth / 2) for sx in (-1, 1) for sz in (-1, 1)]


def chair(dice: Dice) -> list[Solid]:
    """Four legs, a pedestal or sledges; a panel, slats, spindles or an upholstered back; with and without arms."""
    back, seat, leg, arm = range(4)
    style = dice.pick("four", "four", "four", "pedestal", "sledge", "armchair")
    width, depth, height = dice(0.8, 1.15), dice(0.8, 1.1), dice(0.75, 1.1)
    thick = dice(0.06, 0.14)
    tall, lean = dice(0.7, 1.3), -dice(0.02, 0.3)
    solids: list[Solid] = []
    if style == "armchair":
        thick, height, width, tall = dice(0.22, 0.35), dice(0.35, 0.55), dice(1.1, 1.9), dice(0.55, 0.85)
    top = height + thick / 2
    round_seat = style != "armchair" and dice.chance(0.3)
    solids.append(
        revolve(
            [(0.45, -thick / 2), (0.5, -thick / 6), (0.48, thick / 2)],
            seat,
            centre=(0, height, 0),
            sides=14,
            stretch=(width, depth),
            power=dice(2.0, 3.5),
        )
        if round_seat
        else box(
            (0, height, 0),
            (width, thick, depth),
            seat,
            bevel=thick * dice(0.1, 0.4),
            top=dice(0.92, 1.0),
            sides=8,
            power=dice(6, 14),
        )
    )
    inset = 0.8 if round_seat else 0.9
    z_back = -depth / 2 * (0.85 if round_seat else 0.93)
    square = SQUARE if dice.chance(0.5) else 2.0
    sides = 4 if square == SQUARE else 7
    radius = dice(0.03, 0.06)
    posts = style == "four" and dice.chance(0.6)  # the hind legs go on upwards and carry the back
    if style == "four":
        splay, tip = dice(0.0, 0.14), dice(0.55, 1.0)
        for x, z in _corners(width * inset, depth * inset):
            if posts and z < 0:
                bend = (x, height * dice(0.98, 1.02), z)
                path = [(x * (1 + splay), 0, z * (1 + splay)), bend, (x, height + tall, z + lean)]
                solids.append(
                    tube(np.array(path), radius * np.array([tip, 1, 0.8]), [leg, back], sides=sides, power=square)
                )
            else:
                solids.append(
                    bar(
                        (x, height, z),
                        (x * (1 + splay), 0, z * (1 + splay)),
                        radius,
                        leg,
                        tip=tip,
                        sides=sides,
                        power=square,
                    )
                )
        if dice.chance(0.3):
            y, x = height * dice(0.3, 0.5), width * inset / 2
            solids += both(bar((x, y, -depth * inset / 2), (x, y, depth * inset / 2), radius * 0.6, leg, sides=5))
    elif style == "pedestal":
        solids.append(revolve([(0.11, 0.1), (0.06, 0.2), (0.055, height * 0.7), (0.12, height)], leg, sides=9))
        if dice.chance(0.4):
            solids.append(revolve([(0.42, 0.0), (0.42, 0.04), (0.1, 0.14)], leg, sides=14))
        else:
            spokes = dice.count(4, 6)
            for angle in np.arange(spokes) / spokes * 2 * np.pi + 0.3:
                end = (0.48 * np.cos(angle), 0.04, 0.48 * np.sin(angle))
                solids.append(bar((0, 0.16, 0), end, 0.05, leg, tip=0.6, sides=5, across=(0, 1, 0)))
    elif style == "sledge":
        x, z = width * 0.43, depth * 0.44
        path = [(x, height, z), (x, 0.03, z), (x, 0.03, -z), (x, height, -z)]
        rounded = np.concatenate(
            [
                path[:1],
                bezier([(x, 0.15, z), (x, 0.02, z), (x, 0.03, z - 0.12)], 4),
                bezier([(x, 0.03, -z + 0.12), (x, 0.02, -z), (x, 0.15, -z)], 4),
                path[-1:],
            ]
        )
        solids += both(tube(rounded, radius * 0.8, leg, sides=6))
    else:
        for x, z in _corners(width * 0.85, depth * 0.85):
            solids.append(bar((x, height, z), (x, 0, z), dice(0.05, 0.08), leg, tip=0.7, sides=6))
    solids += _chair_back(dice, style, posts, width * (0.75 if round_seat else 0.92), top, tall, z_back, lean, back)
    if style == "armchair" or dice.chance(0.4):
        x, rise = width * (0.5 if style == "armchair" else 0.47), tall * dice(0.32, 0.5)
        if style == "armchair":
            wide, bottom = dice(0.14, 0.24), height - thick * 0.45
            size = (wide, top + rise * 0.8 - bottom, depth * 0.95)
            solids += both(box((x, bottom + size[1] / 2, 0), size, arm, bevel=wide * 0.3, sides=8, power=7))
        elif dice.chance(0.5):
            front, thin = depth * dice(0.2, 0.4), dice(0.028, 0.05)
            solids += both(
                bar(
                    (x, top + rise, z_back + lean * 0.4),
                    (x, top + rise, front),
                    (thin * 1.3, thin),
                    arm,
                    sides=6,
                    power=4,
                )
            )
            solids += both(bar((x, top - thick, front - 0.04), (x, top + rise, front - 0.06), thin * 0.8, arm, sides=6))
        else:
            rail = bezier(
                [(x, top + rise, z_back + lean * 0.4), (x, top + rise, depth * 0.6), (x, top - thick, depth * 0.3)], 8
            )
            solids += both(tube(rail, dice(0.028, 0.045), arm, sides=6))
    return solids


def _chair_back(
    dice: Dice, style: str, posts: bool, width: float, top: float, tall: float, z: float, lean: float, back: int
) -> list[Solid]:
    """Between the posts (drawn by the legs if ``posts``), from the seat's top upwards."""
    kind = dice.pick("panel", "rails", "spindles", "curved") if style != "armchair" else "cushion"
    if kind == "cushion":
        thick = dice(0.18, 0.3)
        return [
            box(
                (0, top + tall / 2 - 0.12, z),
                (width, tall + 0.24, thick),
                back,
                bevel=thick * 0.25,
                sides=8,
                power=7,
                lean=(0, lean),
                top=(1, 0.8),
            )
        ]
    solids: list[Solid] = []
    if not posts and kind in ("rails", "spindles"):
        path = np.array([(width / 2, top - 0.1, z), (width / 2, top + tall, z + lean)])
        solids += both(tube(path, dice(0.03, 0.05), back, sides=6))

    def at(t: float) -> np.ndarray:
        return np.array([0.0, top + tall * t, z + lean * t])

    if kind == "rails":
        half = np.array([width / 2, 0, 0])
        for t in np.linspace(0.3, 0.94, dice.count(2, 4)):
            solids.append(
                bar(at(t) - half, at(t) + half, (0.02, dice(0.04, 0.09)), back, across=(0, 0, 1), sides=6, power=4)
            )
    elif kind == "spindles":
        half, low = np.array([width / 2, 0, 0]), 0.22 if dice.chance(0.5) else -0.06
        solids.append(bar(at(0.93) - half, at(0.93) + half, (0.025, 0.06), back, across=(0, 0, 1), sides=6, power=4))
        for x in np.linspace(-0.36, 0.36, dice.count(3, 6)) * width:
            solids.append(bar(at(low) + vec(x, 0, 0), at(0.93) + vec(x, 0, 0), 0.022, back, sides=5))
        if low > 0:
            solids.append(bar(at(low) - half, at(low) + half, (0.02, 0.045), back, across=(0, 0, 1), sides=6, power=4))
    else:  # one panel, flat or bent around the sitter, from the seat or floating on two straps
        start, bow = (dice(0.25, 0.4) if posts else -0.06), (dice(0.05, 0.2) if kind == "curved" else 0.0)
        thick, narrow = dice(0.025, 0.05), dice(0.7, 1.0)
        rings = []
        for x in np.linspace(-0.5, 0.5, 7):
            upper = 0.98 - (1 - narrow) * 0.5 * (2 * x) ** 2
            corners = [(start, thick), (start, -thick), (upper, -thick), (upper, thick)]
            rings.append([at(t) + vec(x * width, 0, bow * (2 * x) ** 2 - bow + dz) for t, dz in corners])
        solids.append(loft(np.array(rings), back))
        if posts and bow:
            solids[-1].vertices[:, 2] += bow
    return solids


def table(dice: Dice) -> list[Solid]:
    """Rectangular or round, on legs, a pedestal or two panels; some with a shelf or drawers."""
    top, leg, shelf, drawer = range(4)
    round_top = dice.chance(0.35)
    width, depth, height = dice(1.2, 2.0), dice(0.8, 1.1), dice(0.5, 1.1)
    if round_top:
        depth = width * dice(0.7, 1.0)
    thick = dice(0.04, 0.1)
    solids = [
        revolve(
            [(0.47, -thick / 2), (0.5, -thick / 4), (0.5, thick / 2)],
            top,
            centre=(0, height, 0),
            sides=20,
            stretch=(width, depth),
        )
        if round_top
        else box((0, height, 0), (width, thick, depth), top, bevel=thick * 0.2, sides=8, power=dice(8, 20))
    ]
    kind = dice.pick("pedestal", "four") if round_top else dice.pick("four", "four", "four", "panels", "double")
    inset = dice(0.6, 0.68) if round_top else dice(0.82, 0.93)
    radius = dice(0.035, 0.075)
    under = height - thick / 2 - 0.004  # what stands below the top ends a hair below it
    if kind == "four":
        splay, tip = dice(-0.08, 0.15), dice(0.5, 1.0)
        square = SQUARE if dice.chance(0.5) else 2.0
        curved = dice.chance(0.25)
        for x, z in _corners(width * inset, depth * inset):
            foot = (x * (1 + splay), 0, z * (1 + splay))
            if curved:
                path = bezier(
                    [
                        (x, under - radius * 0.3, z),
                        (x * 1.12, height * 0.6, z * 1.12),
                        (x * 0.88, height * 0.3, z * 0.88),
                        foot,
                    ],
                    7,
                )
                solids.append(tube(path, radius * np.linspace(1.3, 0.6, 7), leg, sides=7))
            else:
                solids.append(
                    post((x, under, z), foot, radius, leg, tip=tip, sides=4 if square == SQUARE else 8, power=square)
                )
    elif kind in ("pedestal", "double"):
        places = [0.0] if kind == "pedestal" else [-0.3 * width, 0.3 * width]
        foot, belly = dice(0.2, 0.3) * depth, dice(0.05, 0.13)
        profile = [
            (foot, 0.0),
            (foot, 0.05),
            (0.06, 0.12),
            (belly, height * 0.4),
            (0.055, height * 0.7),
            (0.16, under),
        ]
        solids += [revolve(profile, leg, centre=(x, 0, 0), sides=12) for x in places]
        if kind == "double":
            solids.append(bar((-0.3 * width, 0.2, 0), (0.3 * width, 0.2, 0), 0.04, leg, sides=6))
    else:
        wide, thin = depth * dice(0.7, 0.92), dice(0.05, 0.1)
        for x in (-0.45 * width, 0.45 * width):
            solids.append(box((x, under / 2, 0), (thin, under, wide), leg, top=(1, dice(0.7, 1.0))))
    flat = kind in ("four", "panels")
    if flat and dice.chance(0.35):
        size = (width * inset * dice(0.92, 1.04), dice(0.03, 0.06), depth * inset * dice(0.9, 1.04))
        solids.append(
            box(
                (0, height * dice(0.2, 0.4), 0),
                size,
                shelf,
                sides=20 if round_top else 4,
                power=2 if round_top else SQUARE,
            )
        )
    if flat and not round_top and dice.chance(0.45):
        tall = dice(0.14, 0.26)
        if dice.chance(0.5):  # one wide drawer below the top, or a stack at one side
            solids.append(box((0, height - tall / 2, 0), (width * inset * 0.94, tall, depth * inset * 0.9), drawer))
        else:
            tall, side = height * dice(0.45, 0.75), dice.pick(-1, 1)
            wide = width * dice(0.2, 0.28)
            x = side * (width * inset / 2 - wide / 2 - 0.02)
            solids.append(box((x, height - tall / 2, 0), (wide, tall, depth * inset * 0.92), drawer))
            for y in (0.3, 0.7):
                solids.append(
                    box((x, height - tall * y, depth * inset * 0.46 + 0.02), (wide * 0.4, 0.03, 0.06), drawer)
                )
    return solids


def bed(dice: Dice) -> list[Solid]:
    """Single or double, a headboard of panels or bars, sometimes a footboard, one to three pillows."""
    frame, mattress, headboard, pillow, leg = range(5)
    width, depth, height = dice(0.9, 1.7), dice(1.8, 2.2), dice(0.25, 0.45)
    thick, soft = dice(0.1, 0.2), dice(0.15, 0.3)
    solids = [box((0, height, 0), (width, thick, depth), frame, bevel=0.02)]
    solids.append(
        box(
            (0, height + thick / 2 + soft * 0.4, 0),
            (width * dice(0.88, 0.99), soft, depth * 0.97),
            mattress,
            bevel=soft * dice(0.15, 0.35),
            sides=8,
            power=dice(8, 16),
        )
    )
    base = height + thick / 2 + soft * 0.9
    rise = dice(0.3, 0.75)
    round_legs = dice.chance(0.5)
    radius = dice(0.045, 0.08)
    style = dice.pick("panel", "bars", "arch", "cushion")
    for x, z in _corners(width - 2 * radius, depth - 2 * radius):
        head_post = z < 0 and style in ("bars", "panel")
        top = base + rise if head_post else height
        path = np.array([(x, 0, z), (x, height * 0.9, z), (x, top, z)])
        solids.append(
            tube(
                path,
                radius * np.array([0.7, 1, 0.9]),
                [leg, headboard if head_post else leg],
                sides=8 if round_legs else 4,
                power=2.0 if round_legs else SQUARE,
            )
        )
    z = -depth / 2 + radius
    if style == "bars":
        for y in (base + rise * 0.9, base + rise * 0.05):
            solids.append(bar((-width / 2, y, z), (width / 2, y, z), radius * 0.7, headboard, sides=6))
        for x in np.linspace(-0.38, 0.38, dice.count(3, 6)) * width:
            solids.append(bar((x, base, z), (x, base + rise * 0.9, z), radius * 0.5, headboard, sides=5))
    elif style == "arch":
        rings = []
        for x in np.linspace(-0.5, 0.5, 9):
            y = base + rise * (0.55 + 0.45 * np.sqrt(max(1 - (2 * x) ** 2, 0)))
            rings.append([(x * width, h, z + d) for h, d in ((height, 0.05), (height, -0.05), (y, -0.05), (y, 0.05))])
        solids.append(loft(np.array(rings), headboard))
    else:
        deep = dice(0.14, 0.22) if style == "cushion" else dice(0.05, 0.09)
        solids.append(
            box(
                (0, (height + base + rise * 0.95) / 2, z),
                (width, base + rise * 0.95 - height, deep),
                headboard,
                bevel=deep * 0.3,
                lean=(0, -dice(0.0, 0.12)),
            )
        )
    if dice.chance(0.35):
        tall = base + rise * dice(0.1, 0.4)
        solids.append(
            box((0, (height + tall) / 2, depth / 2), (width, tall - height + 0.1, 0.08), headboard, bevel=0.02)
        )
    pillows = dice.count(1, 2) if width < 1.3 else dice.count(2, 3)
    wide = width * 0.86 / pillows
    for i in range(pillows):
        x = (i - (pillows - 1) / 2) * wide
        size = (wide * 0.92, dice(0.12, 0.18), dice(0.3, 0.42))
        solids.append(
            box(
                (x, base + size[1] * 0.3, -depth / 2 + 0.15 + size[2] / 2),
                size,
                pillow,
                bevel=size[1] * 0.4,
                sides=8,
                power=5,
            )
        )
    return solids


BUILDERS = {"chair": (CHAIR, chair), "table": (TABLE, table), "bed": (BED, bed)}
