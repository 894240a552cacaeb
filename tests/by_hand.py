"""The loss of every method in plain arithmetic, one number at a time and written from the papers: what docs/methods.md
pins. No torch, nothing of ours.

Axes as in the page: V views, B things, L tokens, D features, K prototypes, classes or words.
"""

from itertools import count, pairwise, product
from math import cos, exp, log, prod, sin, sqrt
from typing import Any

Nested = Any  # lists of lists of numbers


def filled(wave: Any, shape: tuple[int, ...]) -> Nested:
    """Lists of this shape of wave(1), wave(4), wave(9) ... in reading order."""
    flat = iter([wave(n * n) for n in range(1, prod(shape) + 1)])

    def make(sizes: tuple[int, ...]) -> Nested:
        return [make(sizes[1:]) for _ in range(sizes[0])] if sizes else next(flat)

    return make(shape)


def s(*shape: int) -> Nested:
    return filled(sin, shape)


def c(*shape: int) -> Nested:
    return filled(cos, shape)


def mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


def dot(a: Nested, b: Nested) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def norm(a: Nested) -> float:
    return sqrt(dot(a, a))


def cosine(a: Nested, b: Nested) -> float:
    return dot(a, b) / norm(a) / norm(b)


def distance(a: Nested, b: Nested) -> float:
    return norm([x - y for x, y in zip(a, b, strict=True)])


def middle(rows: Nested) -> Nested:
    return [mean(column) for column in zip(*rows, strict=True)]


def softmax(x: Nested, temperature: float = 1.0) -> Nested:
    e = [exp(v / temperature) for v in x]
    return [v / sum(e) for v in e]


def cross_entropy(target: Nested, logits: Nested, temperature: float = 1.0) -> float:
    return -sum(t * log(p) for t, p in zip(target, softmax(logits, temperature), strict=True))


def named(label: int, logits: Nested, temperature: float = 1.0) -> float:
    return -log(softmax(logits, temperature)[label])


def normal(x: Nested, eps: float = 1e-5, over: int = 0) -> Nested:
    """x less its mean, over its standard deviation; ``over=1`` for the unbiased one."""
    m = mean(x)
    return [(v - m) / sqrt(sum((w - m) ** 2 for w in x) / (len(x) - over) + eps) for v in x]


def sinkhorn(scores: Nested, temperature: float) -> Nested:
    """As the authors of SwAV write it: columns to 1 / K, rows to 1 / N, three times."""
    q = [[exp(v / temperature) for v in row] for row in scores]
    N, K = len(q), len(q[0])
    for _ in range(3):
        columns = [sum(row[k] for row in q) for k in range(K)]
        q = [[v / columns[k] / K for k, v in enumerate(row)] for row in q]
        q = [[v / sum(row) / N for v in row] for row in q]
    return [[v * N for v in row] for row in q]


def pairs(student: Nested, teacher: Nested, temperature: float) -> float:
    """DINO's: mean over things and over all pairs of a student's view and another view of the teacher."""
    at = [(v, t) for v, t in product(range(len(student)), range(len(teacher))) if v != t]
    return mean(cross_entropy(teacher[t][b], student[v][b], temperature) for v, t in at for b in range(len(student[0])))


# ------------------------------------------------------------------ two views and what is done with them


def simclr() -> list[float]:
    rows = [(v, b, z) for v, view in enumerate(s(2, 4, 3)) for b, z in enumerate(view)]
    terms = []
    for i, (_, b, z) in enumerate(rows):
        e = {j: exp(cosine(z, other) / 0.1) for j, (_, _, other) in enumerate(rows) if j != i}
        (p,) = (j for j, (_, thing, _) in enumerate(rows) if thing == b and j != i)
        terms.append(-log(e[p] / sum(e.values())))
    return [mean(terms)]


def moco() -> list[float]:
    query, keys = s(4, 3), c(9, 3)
    return [mean(named(0, [cosine(q, k) for k in [keys[n], *keys[4:]]], 0.2) for n, q in enumerate(query))]


def swapped(z: Nested) -> float:
    return -mean(cosine(z[v][b], z[1 - v][b]) for v in (0, 1) for b in range(4))


def byol() -> list[float]:
    return [swapped(s(2, 4, 3))]


def simsiam() -> list[float]:
    return [swapped(c(2, 4, 3))]


def scores(views: int) -> Nested:
    return [[[cosine(z, p) for p in c(5, 2)] for z in view] for view in s(views, 4, 2)]


def swav() -> list[float]:
    q = scores(3)
    return [pairs(q, [sinkhorn(view, 0.05) for view in q[:2]], 0.1)]


def deepcluster() -> list[float]:
    cluster = [0, 2, 2, None]
    return [mean(named(k, view[b], 0.1) for view in scores(3) for b, k in enumerate(cluster) if k is not None)]


def obow() -> list[float]:
    words = s(5, 2)
    weight = [[x / norm(w) for x in w] for w in words]

    def bag(tokens: Nested) -> Nested:
        q = [softmax([-(distance(t, w) ** 2) for w in words], 0.3) for t in tokens]
        most = [max(column) for column in zip(*q, strict=True)]
        return [m / sum(most) for m in most]

    tokens = c(3, 2, 4, 2)  # of three views of two things, the last of which the teacher does not see
    student = [[[dot(middle(thing), w) for w in weight] for thing in view] for view in tokens]
    return [pairs(student, [[bag(thing) for thing in view] for view in tokens[:2]], 0.125)]


def barlow() -> list[float]:
    a, b = ([normal(column) for column in zip(*x, strict=True)] for x in (s(6, 3), c(6, 3)))
    corr = [[dot(x, y) / 6 for y in b] for x in a]
    ij = list(product(range(3), range(3)))
    return [sum((1 - corr[i][i]) ** 2 for i in range(3)) + 0.0051 * sum(corr[i][j] ** 2 for i, j in ij if i != j)]


def vicreg() -> list[float]:
    x, y, N, D = s(6, 3), c(6, 3), 6, 3
    total = 25 * mean((x[n][i] - y[n][i]) ** 2 for n, i in product(range(N), range(D)))
    for view in (x, y):
        centred = [[v - mean(column) for v in column] for column in zip(*view, strict=True)]
        cov = [[dot(a, b) / (N - 1) for b in centred] for a in centred]
        total += 25 / 2 * mean(max(0, 1 - sqrt(cov[i][i] + 1e-4)) for i in range(D))
        total += sum(cov[i][j] ** 2 for i, j in product(range(D), range(D)) if i != j) / D
    return [total]


def lejepa() -> list[float]:
    z, directions = s(3, 6, 3), [list(d) for d in zip(*c(3, 4), strict=True)]
    centre = [middle([z[0][n], z[1][n]]) for n in range(6)]
    apart = mean(distance(view[n], centre[n]) ** 2 / 3 for view in z for n in range(6))

    def test(x: Nested) -> float:
        def at(t: float) -> float:
            real, imaginary = mean(cos(t * v) for v in x), mean(sin(t * v) for v in x)
            return ((real - exp(-t * t / 2)) ** 2 + imaginary**2) * exp(-t * t / 2)

        knots = [at(3 * k / 16) for k in range(17)]
        return 2 * len(x) * sum((a + b) / 2 * 3 / 16 for a, b in pairwise(knots))

    normality = mean(test([dot(row, d) / norm(d) for row in view]) for view in z for d in directions)
    return [0.95 * apart + 0.05 * normality]


# ------------------------------------------------------------------ a teacher's assignments

HIDDEN = [[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]]


def centred(logits: Nested, centre: Nested) -> Nested:
    return softmax([x - m for x, m in zip(logits, centre, strict=True)], 0.04)


def masked(student: Nested, teacher: Nested) -> float:
    """Mean over things of the mean over the hidden tokens of each; 0 for a thing without one."""
    row, things = count(), []
    for thing in HIDDEN:
        terms = [cross_entropy(teacher[i], student[i], 0.1) for i in (next(row) for h in thing if h)]
        things.append(mean(terms) if terms else 0.0)
    return mean(things)


def dino() -> list[float]:
    z, centre = s(3, 4, 5), c(5)
    return [pairs(z, [[centred(x, centre) for x in view] for view in z[:2]], 0.1)]


def ibot() -> list[float]:
    return [dino()[0] + masked(s(6, 5), [centred(x, c(5)) for x in c(6, 5)])]


def dinov2() -> list[float]:
    z, whole = s(3, 4, 5), c(2, 4, 3)
    q = sinkhorn(z[0] + z[1], 0.04)
    far = 0.0
    for view in whole:
        unit = [[x / norm(row) for x in row] for row in view]
        far -= mean(log(min(distance(u, v) for v in unit if v is not u) + 1e-4) for u in unit)
    return [pairs(z, [q[:4], q[4:]], 0.1) + masked(s(6, 5), sinkhorn(c(6, 5), 0.04)) + 0.1 * far]


def dinov3() -> list[float]:
    a, b = s(2, 4, 3), c(2, 4, 3)
    gram = mean(
        (cosine(a[n][i], a[n][j]) - cosine(b[n][i], b[n][j])) ** 2 for n, i, j in product(range(2), range(4), range(4))
    )
    return [2 * gram]


# ------------------------------------------------------------------ hidden tokens

SOME = [(0, 0), (0, 2), (1, 1), (1, 2), (1, 3)]


def smooth_l1(guess: Nested, target: Nested, beta: float) -> float:
    gaps = [abs(g - t) for g, t in zip(guess, target, strict=True)]
    return mean(d * d / (2 * beta) if d < beta else d - beta / 2 for d in gaps)


def mae() -> list[float]:
    guess, held = s(2, 4, 6), c(2, 4, 6)
    return [mean(distance(guess[b][at], normal(held[b][at], 1e-6, over=1)) ** 2 / 6 for b, at in SOME)]


def beit() -> list[float]:
    logits, ids = s(2, 4, 5), [[0, 1, 2, 3], [4, 3, 2, 1]]
    return [mean(named(ids[b][at], logits[b][at]) for b, at in SOME)]


def ijepa() -> list[float]:
    guess, target = s(2, 4, 6), c(2, 4, 6)
    return [mean(smooth_l1(guess[b][at], normal(target[b][at]), 1.0) for b, at in SOME)]


def data2vec() -> list[float]:
    guess, layers = s(2, 4, 6), c(3, 2, 4, 6)
    target = {(b, at): normal(middle([normal(layer[b][at]) for layer in layers])) for b, at in SOME}
    return [mean(smooth_l1(guess[b][at], target[b, at], 2.0) for b, at in SOME)]


# ------------------------------------------------------------------ labels, and components


def known() -> float:
    return mean(named(k, row) for k, row in zip([0, 2, None, 1], s(4, 3), strict=True) if k is not None)


def supervised() -> list[float]:
    return [known()]


def sure(weak: Nested, strong: Nested, threshold: float) -> float:
    terms = []
    for w, x in zip(weak, strong, strict=True):
        p = softmax(w)
        terms.append(named(p.index(max(p)), x) if max(p) >= threshold else 0.0)
    return mean(terms)


def pseudo_label() -> list[float]:
    return [known() + 0.5 * sure(c(5, 3), c(5, 3), 0.5)]


def fixmatch() -> list[float]:
    return [known() + sure([[4 * x for x in row] for row in s(5, 3)], c(5, 3), 0.95)]


def acd() -> list[float]:
    feature, group = s(2, 6, 3), [[0, 0, 0, 1, 1, 2], [0, 1, 1, 0, 0, 1]]
    found = []
    for x, g in zip(feature, group, strict=True):
        unit = [[v / norm(row) for v in row] for row in x]
        means = [middle([u for u, k in zip(unit, g, strict=True) if k == m]) for m in range(max(g) + 1)]
        found += [named(k, [cosine(u, m) for m in means], 0.1) for u, k in zip(unit, g, strict=True)]
    every = list(product(range(2), range(6), range(6)))
    share = mean(group[b][i] == group[b][j] for b, i, j in every)

    def pair(b: int, i: int, j: int) -> float:
        near = cosine(feature[b][i], feature[b][j])
        return 1 - near if group[b][i] == group[b][j] else share * max(0, near - 0.5)

    return [mean(found), 0.5 * mean(pair(*at) if at[1] != at[2] else 0.0 for at in every)]
