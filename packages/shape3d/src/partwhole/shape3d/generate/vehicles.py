"""Planes and cars."""

import numpy as np

from partwhole.shape3d.generate.solids import Dice, Solid, bar, blade, both, box, loft, oval, revolve, tube, turned, vec

PLANE = ("body", "wing", "tail", "engine")
CAR = ("body", "cabin", "wheel", "cargo")


def plane(dice: Dice) -> list[Solid]:
    """Airliners, fighters with a delta wing, propeller planes with one or two pairs of wings. The nose looks to +z."""
    body, wing, tail, engine = range(4)
    kind = dice.pick("liner", "liner", "fighter", "propeller", "propeller")
    radius = {"liner": dice(0.1, 0.16), "fighter": dice(0.08, 0.12), "propeller": dice(0.11, 0.17)}[kind]
    length = 2.0
    z = np.array([-1.0, -0.8, -0.4, 0.1, 0.5, 0.78, 0.93, 1.0]) * length / 2
    blunt = dice(0.35, 0.6) if kind == "propeller" else 0.15
    size = np.array([dice(0.15, 0.35), 0.5, 0.9, 1.0, 1.0, 0.85, 0.6, blunt]) * radius
    y = np.array([0.5, 0.35, 0.05, 0, 0, -0.02, -0.12, -0.2]) * radius * dice(0.5, 1.5)
    path = np.column_stack([np.zeros(8), y, z])
    solids = [tube(path, np.column_stack([size, size * dice(1.0, 1.25)]), body, sides=10)]
    if kind != "liner":  # the canopy
        at = dice(0.1, 0.4)
        solids.append(
            tube(
                np.array(
                    [
                        (0, radius * 0.6, at - 0.25),
                        (0, radius * 1.05, at - 0.1),
                        (0, radius * 1.05, at + 0.1),
                        (0, radius * 0.5, at + 0.3),
                    ]
                ),
                radius * np.array([0.3, 0.55, 0.55, 0.3]),
                body,
                sides=8,
            )
        )
    span, chord = dice(0.75, 1.15), dice(0.3, 0.45)
    sweep, taper, rise = -dice(0.25, 0.6), dice(0.3, 0.6), dice(-0.05, 0.18)
    level = dice.pick(-0.6, -0.4, 0.7) * radius
    if kind == "fighter":
        span, chord, sweep, taper, rise = (
            dice(0.5, 0.75),
            dice(0.7, 1.0),
            -dice(0.4, 0.6),
            dice(0.08, 0.25),
            dice(-0.04, 0.06),
        )
    elif kind == "propeller":
        sweep, taper, chord = dice(-0.12, 0.05), dice(0.55, 1.0), dice(0.28, 0.38)
    at = dice(0.0, 0.2) - (0.15 if kind == "fighter" else 0.0)

    def pair(level: float) -> list[Solid]:
        return both(
            blade((0.0, level, at), (span, level + rise, at + sweep), (chord, chord * taper), (0.07, 0.03), wing)
        )

    solids += pair(level)
    if kind == "propeller" and dice.chance(0.45):
        gap = radius * dice(2.2, 3.0)
        solids += pair(level + gap)
        for x in (0.35 * span, 0.7 * span):
            low = level + rise * x / span
            solids += both(
                bar((x, low, at + sweep * x / span), (x, low + gap, at + sweep * x / span), 0.018, wing, sides=5)
            )
    solids += _tail(dice, kind, radius, tail)
    if kind == "liner":
        count = dice.pick(1, 1, 2)
        fat, long = dice(0.055, 0.08), dice(0.26, 0.36)
        places = [0.35, 0.65][:count] if count > 1 else [dice(0.32, 0.45)]
        rear = count == 1 and dice.chance(0.3)
        for t in places:
            x, y0, z0 = t * span, level + rise * t, at + sweep * t + chord * 0.25
            if rear:
                x, y0, z0 = radius + fat * 0.6, radius * 0.3 + fat, -0.6
            pod = np.array([(x, y0 - fat, z0 - long / 2), (x, y0 - fat, z0), (x, y0 - fat, z0 + long / 2)])
            solids += both(tube(pod, fat * np.array([0.6, 1.0, 0.9]), engine, sides=9))
    elif kind == "propeller":
        nose = 1.0 + 0.02
        if dice.chance(0.3):  # two engines in the wings
            x = span * 0.35
            solids += both(
                tube(
                    np.array([(x, level, at - 0.2), (x, level, at + 0.1), (x, level, at + 0.38)]),
                    np.array([0.04, 0.08, 0.05]),
                    engine,
                    sides=9,
                )
            )
            hubs = [(-x, level, at + 0.38), (x, level, at + 0.38)]
        else:
            hubs = [(0.0, float(y[-1]), nose)]
        blades, long = dice.count(2, 4), dice(0.2, 0.32)
        for hub in hubs:
            solids.append(
                tube(
                    np.array([(*hub[:2], hub[2] - 0.08), (*hub[:2], hub[2]), (*hub[:2], hub[2] + 0.08)]),
                    np.array([0.06, 0.055, 0.015]),
                    engine,
                    sides=8,
                )
            )
            for i in range(blades):
                turn = bar(
                    hub, (hub[0] + long, hub[1], hub[2]), (0.035, 0.014), engine, tip=0.7, sides=6, across=(0, 1, 0)
                )
                solids.append(turned(turn, 360 / blades * i + 20, axis=2, centre=hub))
    elif dice.chance(0.7):
        side = [radius * 0.55] if dice.chance(0.6) else [0.0]
        for x in side:
            pipe = tube(
                np.array([(x, 0.01, -1.12), (x, 0.01, -0.95), (x, 0.0, -0.55)]),
                np.array([0.05, 0.07, 0.06]),
                engine,
                sides=9,
            )
            solids += both(pipe) if x else [pipe]
    return solids


def _tail(dice: Dice, kind: str, radius: float, tail: int) -> list[Solid]:
    """A fin and two stabilisers: low, on top of the fin, or twin fins."""
    solids: list[Solid] = []
    tall, deep = dice(0.3, 0.42), dice(0.22, 0.34)
    back, at = dice(0.1, 0.28), -0.8
    base = radius * 0.3
    twin = kind == "fighter" and dice.chance(0.6)
    if twin:
        lean = dice(0.02, 0.15)
        x = radius * 0.8
        solids += both(
            blade((x, 0, at + 0.1), (x + lean, tall, at + 0.1 - back), (deep, deep * 0.5), (0.04, 0.02), tail, flat=0)
        )
    else:
        solids.append(
            blade(
                (0, base - 0.05, at), (0, base + tall, at - back), (deep * 1.2, deep * 0.6), (0.05, 0.03), tail, flat=0
            )
        )
    high = not twin and dice.chance(0.3)
    y, z = (base + tall * 0.97, at - back) if high else (base * 0.6, at - 0.03)
    wide, chord = dice(0.28, 0.42), dice(0.18, 0.26)
    solids += both(blade((0.0, y, z), (wide, y + 0.03, z - dice(0.02, 0.2)), (chord, chord * 0.55), (0.04, 0.02), tail))
    return solids


def car(dice: Dice) -> list[Solid]:
    """Saloons, hatchbacks, vans, pick-ups and lorries on four or six wheels. The front looks to +z."""
    body, cabin, wheel, cargo = range(4)
    kind = dice.pick("saloon", "hatch", "van", "pickup", "lorry", "roadster")
    length, width = dice(1.9, 2.3), dice(0.8, 0.95)
    wheel_size, clear = dice(0.17, 0.23), dice(0.1, 0.16)
    tall, half = dice(0.28, 0.36), length / 2
    if kind in ("lorry", "van", "pickup"):
        length *= dice(1.05, 1.25)
        half = length / 2
        clear += 0.05
    floor = clear
    waist = floor + tall
    hood = dice(0.75, 0.95)
    # the body: rings across the car from the rear to the front
    flat = oval(8, dice(5, 9))

    def ring(z: float, low: float, high: float, wide: float) -> np.ndarray:
        return np.column_stack([flat[:, 0] * wide / 2, (low + high) / 2 + flat[:, 1] * (high - low) / 2, np.full(8, z)])

    tail_up = 1.0 if kind in ("hatch", "van") else dice(0.9, 1.0)
    rings = [
        ring(-half, floor + 0.06, floor + tall * tail_up * 0.9, width * 0.86),
        ring(-half * 0.93, floor, floor + tall * tail_up, width),
        ring(half * 0.3, floor, waist, width),
        ring(half * 0.9, floor, floor + tall * hood, width * 0.97),
        ring(half, floor + 0.06, floor + tall * hood * 0.8, width * 0.84),
    ]
    rise = dice(0.26, 0.36)
    if kind == "lorry":
        solids = [box((0, floor + 0.09, 0), (width * 0.7, 0.16, length * 0.98), body)]
        nose = dice(0.0, 0.3)
        front = half - nose
        deep, high = dice(0.5, 0.7), dice(0.65, 0.85)
        solids.append(
            loft(
                np.stack(
                    [
                        ring(front - deep, floor + 0.05, floor + high, width),
                        ring(front - 0.12, floor + 0.02, floor + high, width),
                        ring(front, floor + 0.02, floor + high * dice(0.55, 0.95), width * 0.96),
                    ]
                ),
                cabin,
            )
        )
        if nose > 0.1:
            solids.append(
                box((0, floor + 0.25, half - nose / 2 - 0.03), (width * 0.9, 0.42, nose + 0.08), body, bevel=0.04)
            )
        start, end = -half, front - deep - dice(0.0, 0.08)
        load = dice.pick("box", "box", "tank", "flat")
        middle, long = (start + end) / 2, end - start
        if load == "box":
            up = dice(0.7, 1.1)
            solids.append(box((0, floor + 0.15 + up / 2, middle), (width * 1.04, up, long), cargo))
        elif load == "tank":
            r = dice(0.34, 0.45)
            path = np.array([(0, floor + 0.1 + r, t) for t in (start, start + 0.08, end - 0.08, end)])
            solids.append(tube(path, r * np.array([0.75, 1, 1, 0.75]), cargo, sides=14))
        else:
            solids.append(box((0, floor + 0.2, middle), (width * 1.02, 0.1, long), cargo))
            solids += both(box((width * 0.48, floor + 0.35, middle), (0.05, 0.3, long), cargo))
    else:
        solids = [loft(np.stack(rings), body)]
        spans = {
            "saloon": (-0.72, -0.45, 0.12, 0.45),
            "hatch": (-0.98, -0.78, 0.08, 0.45),
            "van": (-0.98, -0.94, 0.35, 0.75),
            "pickup": (-0.15, -0.08, 0.25, 0.5),
            "roadster": (-0.25, -0.1, 0.05, 0.25),
        }
        z0, z1, z2, z3 = (half * (t + dice(-0.03, 0.03)) for t in spans[kind])
        if kind == "van":
            rise *= dice(1.2, 1.8)
        if kind == "roadster":
            rise *= 0.75
        low, high = waist - 0.1, waist + rise
        inner = width * dice(0.72, 0.85)
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
        layers = []
        for y, back, front, wide in (
            (low, z0, z3, width * 0.95),
            (waist, z0, z3, width * 0.95),
            (high - 0.03, z1, z2, inner),
            (high, z1 + 0.03, z2 - 0.03, inner - 0.06),
        ):
            layers.append([(sx * wide / 2, y, front if sz > 0 else back) for sx, sz in corners])
        solids.append(loft(np.array(layers), cabin))
        if kind == "pickup":
            wall = dice(0.05, 0.08)
            deep, middle = abs(-half - z0), (-half * 0.97 + z0) / 2
            up = dice(0.12, 0.2)
            y = floor + tall + up / 2 - 0.03
            solids += both(box((width / 2 - wall / 2, y, middle), (wall, up, deep * 0.95), cargo))
            solids.append(box((0, y, -half * 0.97), (width, up, wall), cargo))
    axles = [-half * dice(0.58, 0.68), half * dice(0.58, 0.68)]
    if kind == "lorry" and dice.chance(0.5):
        axles.append(axles[0] + wheel_size * 2.2)
    thick = dice(0.13, 0.2)
    for z in axles:
        rim = revolve(
            [
                (wheel_size * 0.93, -thick / 2),
                (wheel_size, -thick / 3),
                (wheel_size, thick / 3),
                (wheel_size * 0.93, thick / 2),
            ],
            wheel,
            sides=14,
        )
        upright = turned(rim, 90, axis=2)
        solids += both(
            Solid(upright.vertices + vec(width / 2 - thick * 0.35, wheel_size, z), upright.faces, upright.labels)
        )
    if kind in ("saloon", "hatch") and dice.chance(0.2):
        solids.append(box((0, floor + tall + 0.12, -half * 0.93), (width * 0.8, 0.03, 0.16), body))
    return solids


BUILDERS = {"plane": (PLANE, plane), "car": (CAR, car)}
