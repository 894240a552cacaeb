"""Four-legged animals, birds and fish."""

import numpy as np

from partwhole.shape3d.generate.solids import Dice, Solid, bezier, blade, both, mirrored, tube, vec

QUADRUPED = ("torso", "head", "leg", "tail", "ear")
BIRD = ("body", "head", "wing", "leg", "tail")
FISH = ("body", "fin", "tail")


def quadruped(dice: Dice) -> list[Solid]:
    """Dogs, horses, long necks, pigs and trunks: spine, neck and head are one skin. The head looks to +z."""
    torso, head, leg, tail, ear = range(5)
    kind = dice.pick("dog", "horse", "giraffe", "pig", "elephant")
    long, fat = dice(1.0, 1.3), dice(0.2, 0.28)
    tall = {
        "dog": dice(0.5, 0.75),
        "horse": dice(0.8, 1.05),
        "giraffe": dice(0.9, 1.2),
        "pig": dice(0.3, 0.45),
        "elephant": dice(0.55, 0.75),
    }[kind]
    if kind in ("pig", "elephant"):
        fat = dice(0.32, 0.42)
    neck = {
        "dog": dice(0.2, 0.35),
        "horse": dice(0.4, 0.6),
        "giraffe": dice(0.8, 1.2),
        "pig": dice(0.05, 0.1),
        "elephant": dice(0.05, 0.12),
    }[kind]
    y, back, front = tall + fat * 0.6, -long / 2, long / 2
    lift = dice(35, 75) if kind not in ("pig", "elephant") else dice(5, 30)
    away = np.array([0, np.sin(np.deg2rad(lift)), np.cos(np.deg2rad(lift))])
    shoulder = np.array([0, y + fat * 0.2, front - fat * 0.3])
    skull = shoulder + away * (neck + fat * 0.7)
    size = {"pig": 0.22, "elephant": 0.28}.get(kind, 0.16) * dice(0.9, 1.15)
    down = np.deg2rad(-dice(5, 45))
    gaze = np.array([0, np.sin(down), np.cos(down)])
    muzzle = size * dice(1.4, 2.4)
    spine = np.array(
        [(0, y, back), (0, y + fat * 0.05, back + 0.08), (0, y - fat * dice(-0.1, 0.15), 0), (0, y, front - 0.12)]
    )
    slim = {"dog": 0.55, "horse": 0.6, "giraffe": 0.5}.get(kind, 0.8) * fat
    path = np.concatenate([spine, [shoulder + away * fat * 0.4], [skull - away * size * 0.35]])
    belly = dice(0.75, 1.15)
    radii = np.array([0.5 * fat, 0.85 * fat, fat * belly, fat, slim, min(slim, size) * 0.85])
    solids = [
        tube(
            path,
            np.column_stack([radii * dice(0.75, 0.95), radii]),
            [torso] * 4 + [head if neck < 0.15 else torso],
            sides=10,
        )
    ]
    face = np.stack(
        [
            skull - gaze * size * 0.75,
            skull - gaze * size * 0.3,
            skull + gaze * size * 0.4,
            skull + gaze * muzzle * 0.75,
            skull + gaze * muzzle,
        ]
    )
    snout = dice(0.4, 0.65)
    solids.append(tube(face, size * np.array([0.55, 0.95, 0.9, snout, snout * 0.75]), head, sides=9))
    if kind == "elephant":
        trunk = bezier(
            [
                skull + gaze * size * 0.5,
                skull + gaze * size * 2.2,
                (0, tall * 0.4, skull[2] + size * 1.4),
                (0, tall * 0.25, skull[2] + size * dice(1.4, 2.6)),
            ],
            9,
        )
        solids.append(tube(trunk, np.linspace(size * 0.5, size * 0.18, 9), head, sides=8))
    top = skull - gaze * size * 0.2
    solids += _ears(dice, kind, top, size, ear)
    solids += _legs(dice, kind, tall, fat, y, back, front, leg)
    length = dice(0.15, 0.3) if kind in ("pig",) else dice(0.3, 0.75)
    high = dice(-0.7, 0.6) if kind == "dog" else dice(-0.9, -0.4)
    tip = np.array([0, y + length * high, back - length * 0.6])
    bushy = dice(0.6, 2.0)
    curve = bezier([(0, y + fat * 0.15, back + 0.06), (0, y + fat * 0.35, back - length * 0.4), tip], 7)
    thin = fat * dice(0.16, 0.24)
    solids.append(
        tube(curve, thin * np.array([1.0, 0.9, 0.8, 0.8 * bushy, 0.9 * bushy, 0.7 * bushy, 0.35]), tail, sides=7)
    )
    return solids


def _ears(dice: Dice, kind: str, top: np.ndarray, size: float, ear: int) -> list[Solid]:
    if kind == "elephant":
        root = top + vec(size * 0.7, size * 0.2, -size * 0.2)
        flap = np.stack(
            [root, root + vec(size * 0.5, size * 0.1, -size * 0.1), root + vec(size * 1.1, -size * 0.3, -size * 0.5)]
        )
        return both(
            tube(flap, size * np.array([[0.5, 0.12], [0.95, 0.1], [0.6, 0.06]]), ear, sides=8, across=(0, 1, 0))
        )
    long = size * (dice(0.9, 1.6) if kind in ("dog", "horse") else dice(0.6, 0.9))
    out, up = (dice(0.6, 1.0), -0.5) if kind == "dog" and dice.chance(0.4) else (dice(0.15, 0.5), 1.0)
    root = top + vec(size * 0.5, size * 0.55, 0)
    tip = root + np.array([out, up, -0.1]) * long
    horns = both(
        tube(
            np.stack([root, (root + tip) / 2 + vec(0.1 * size, 0.15 * size, 0), tip]),
            size * np.array([[0.3, 0.15], [0.33, 0.13], [0.06, 0.04]]),
            ear,
            sides=7,
        )
    )
    if kind == "giraffe" or (kind == "horse" and dice.chance(0.25)):  # horns
        base, high = top + vec(size * 0.25, size * 0.7, size * 0.1), size * dice(0.7, 1.8)
        curve = bezier([base, base + vec(0.1 * high, 0.6 * high, 0), base + vec(0.4 * high, high, -0.3 * high)], 5)
        horns += both(tube(curve, np.linspace(size * 0.15, size * 0.08, 5), ear, sides=6))
    return horns


def _legs(dice: Dice, kind: str, tall: float, fat: float, y: float, back: float, front: float, leg: int) -> list[Solid]:
    """Four bent tapered limbs that grow out of the flanks, each pair in its own stride."""
    solids: list[Solid] = []
    thick = {"elephant": 0.42, "pig": 0.32}.get(kind, 0.26) * fat * dice(0.9, 1.2)
    x = fat * dice(0.45, 0.62)
    for z, knee in ((front - fat * 0.6, 0.06), (back + fat * 0.7, -0.1)):
        for side in (-1, 1):
            stride = dice(-0.18, 0.18) * tall
            bend = knee * tall * dice(0.3, 1.2)
            path = np.array(
                [
                    (x, y - fat * 0.1, z),
                    (x, tall * 0.75, z + 0.02),
                    (x, tall * 0.45, z + bend + stride * 0.4),
                    (x, tall * 0.1, z + stride),
                    (x, 0.0, z + stride + 0.03),
                ]
            )
            sizes = thick * np.array([1.7, 1.6, 0.95, 0.7, dice(0.8, 1.1)])
            solid = tube(path, np.column_stack([sizes * 0.85, sizes]), leg, sides=8)
            solids.append(solid if side > 0 else mirrored(solid))
    return solids


def bird(dice: Dice) -> list[Solid]:
    """Sitting, walking or flying: body, neck and head in one skin, folded or spread wings, a fan of a tail."""
    body, head, wing, leg, tail = range(5)
    flying = dice.chance(0.4)
    fat, long = dice(0.22, 0.34), dice(0.8, 1.1)
    pitch = dice(-5, 15) if flying else dice(10, 50)
    forward = np.array([0, np.sin(np.deg2rad(pitch)), np.cos(np.deg2rad(pitch))])
    up = np.array([0, forward[2], -forward[1]])
    chest = forward * long * 0.3
    neck = dice(0.1, 0.25) if dice.chance(0.6) else dice(0.4, 0.8)
    rise = np.deg2rad(dice(10, 45) if flying else dice(50, 85))
    away = np.array([0, np.sin(rise), np.cos(rise)])
    size = fat * dice(0.5, 0.75)
    skull = chest + forward * fat * 0.3 + away * (neck + size)
    thin = size * dice(0.55, 0.9)
    rear = -forward * long * 0.5
    path = np.stack(
        [
            rear,
            rear * 0.75,
            np.zeros(3),
            chest,
            chest + forward * fat * 0.3 + away * fat * 0.35,
            skull - away * size * 0.7,
            skull,
            skull + away * size * 0.8,
        ]
    )
    path[5] = path[4] * 0.15 + path[5] * 0.85
    radii = np.array([0.25 * fat, 0.55 * fat, fat, 0.95 * fat, max(0.6 * fat, thin), thin, size, size * 0.5])
    solids = [tube(path, radii, [body] * 5 + [head] * 2, sides=10)]
    drop = np.deg2rad(-dice(0, 30))
    gaze = np.array([0, np.sin(drop), np.cos(drop)])
    beak = size * dice(0.6, 2.2)
    bill = np.stack(
        [
            skull + gaze * size * 0.5,
            skull + gaze * (size + beak * 0.4),
            skull + gaze * (size + beak) - vec(0, dice(0, 0.2) * beak, 0),
        ]
    )
    solids.append(tube(bill, size * np.array([[0.45, 0.4], [0.3, 0.25], [0.06, 0.05]]), head, sides=7))
    if flying:
        span, chord = dice(0.9, 1.5), dice(0.35, 0.5)
        lift, sweep = dice(-0.2, 0.5), dice(0.0, 0.25)
        start = forward * long * 0.08 + up * fat * 0.35
        solids += both(
            blade(
                start,
                start + vec(span, lift, -dice(0.05, 0.35)),
                (chord, chord * dice(0.3, 0.7)),
                (0.1, 0.03),
                wing,
                sweep=sweep,
            )
        )
    else:
        side = np.array([fat * 0.82, 0, 0])
        droop, end = fat * dice(0.1, 0.4), dice(0.6, 0.9)
        fold = np.stack(
            [
                chest * 0.8 + side * 0.9 + up * fat * 0.3,
                side * 1.08 + up * fat * 0.1,
                rear * 0.7 + side * 0.6 - up * 0.02,
                rear * (end + 0.5) + side * 0.25 - up * droop * 0.3,
            ]
        )
        solids += both(
            tube(fold, fat * np.array([[0.16, 0.45], [0.2, 0.62], [0.16, 0.42], [0.05, 0.1]]), wing, sides=8)
        )
    length, spread = dice(0.35, 0.7), dice(1.2, 3.0)
    fan = np.stack(
        [
            rear * 0.7,
            rear * 1.05,
            rear - forward * length * 0.6 - up * 0.03,
            rear - forward * length + up * dice(-0.1, 0.1),
        ]
    )
    solids.append(
        tube(
            fan, fat * np.array([[0.35, 0.2], [0.3, 0.14], [0.25 * spread, 0.08], [0.3 * spread, 0.05]]), tail, sides=8
        )
    )
    if not flying or dice.chance(0.4):
        height = dice(0.35, 1.0) if not flying else 0.3
        x, thick = fat * 0.45, dice(0.035, 0.055)
        z = 0.05 if not flying else -long * 0.2
        foot = np.array([x, -fat * 0.8 - height, z + 0.02])
        solids += both(
            tube(
                np.stack(
                    [(x, -fat * 0.5, z), (x, -fat * 0.85, z - 0.02), (x, -fat * 0.8 - height * 0.45, z - 0.06), foot]
                ),
                thick * np.array([2.2, 1.8, 0.9, 0.8]),
                leg,
                sides=7,
            )
        )
        solids += both(
            tube(
                np.stack([foot - vec(0, 0, 0.1), foot, foot + vec(0, 0, 0.2)]),
                np.array([[0.03, 0.02], [0.07, 0.03], [0.1, 0.015]]),
                leg,
                sides=6,
            )
        )
    return solids


def fish(dice: Dice) -> list[Solid]:
    """Round and long fish and sharks: the body narrows to the tail; fins on the back, the belly and the sides."""
    body, fin, tail = range(3)
    long, tall, wide = 2.0, dice(0.2, 0.5), dice(0.12, 0.24)
    z = np.array([-0.85, -0.6, -0.25, 0.15, 0.55, 0.85, 1.0]) * long / 2
    form = np.array([0.18, 0.35, 0.75, 1.0, 0.9, 0.55, dice(0.1, 0.3)])
    droop = np.array([0, 0, 0, 0, 0, -0.1, -0.15]) * tall
    stem = dice(0.6, 1.0)
    form[:2] *= stem
    solids = [
        tube(np.column_stack([np.zeros(7), droop, z]), np.column_stack([wide * form, tall * form]), body, sides=10)
    ]
    end, span = -0.85 * long / 2, dice(0.3, 0.5)
    lobe, cut = dice(0.6, 1.0), dice(0.05, 0.35)
    if dice.chance(0.8):  # two lobes, or one rounded fan
        for sign, grow in ((1, 1.0), (-1, lobe)):
            solids.append(
                blade(
                    (0, -sign * 0.05, end + 0.08),
                    (0, sign * span * grow, end - cut),
                    (0.28, 0.12),
                    (0.09, 0.03),
                    tail,
                    flat=0,
                )
            )
    else:
        solids.append(
            blade(
                (0, -span * 0.8, end - 0.2),
                (0, span * 0.8, end - 0.2),
                (0.16, 0.16),
                (0.05, 0.05),
                tail,
                flat=0,
                sweep=-0.1,
            )
        )
        solids.append(blade((0, -0.08, end - 0.05), (0, 0.08, end - 0.05), (0.5, 0.5), (0.07, 0.07), tail, flat=0))
    at, high, deep = dice(-0.2, 0.25), dice(0.2, 0.45), dice(0.3, 0.6)
    solids.append(
        blade(
            (0, tall * 0.75, at), (0, tall + high, at - dice(0.1, 0.4)), (deep, deep * 0.35), (0.07, 0.02), fin, flat=0
        )
    )
    if dice.chance(0.5):
        solids.append(
            blade(
                (0, tall * 0.45, at - 0.5),
                (0, tall * 0.5 + high * 0.6, at - 0.68),
                (0.25, 0.1),
                (0.06, 0.02),
                fin,
                flat=0,
            )
        )
    if dice.chance(0.7):
        low = dice(-0.45, -0.1)
        solids.append(
            blade(
                (0, -tall * 0.5, low),
                (0, -tall - high * 0.5, low - 0.2),
                (deep * 0.7, deep * 0.3),
                (0.06, 0.02),
                fin,
                flat=0,
            )
        )
    reach = dice(0.25, 0.55)
    solids += both(
        blade(
            (wide * 0.6, -tall * 0.3, 0.4),
            (wide + reach, -tall * dice(0.4, 0.9), 0.4 - dice(0.1, 0.4)),
            (0.28, 0.12),
            (0.06, 0.02),
            fin,
        )
    )
    return solids


BUILDERS = {"quadruped": (QUADRUPED, quadruped), "bird": (BIRD, bird), "fish": (FISH, fish)}
