"""Labels carried from frame to frame by how similar features are (Jabri et al., 2020; Caron et al., 2021).

    affinity[q, k] = cosine of the features of place q of this frame and place k of a past one, where q sees k
    labels[q] = sum over the topk greatest affinity[q, k] of  softmax(affinity[q] / temperature)[k] * labels[k]

and the labels found are those of a past frame for the next one. The published code makes the affinities of all pairs of
places, N x N for every past frame, and then masks those that are too far. Here a tile of queries meets the places that
one of them sees, and no more: the same result, at a cost and with a memory that grow with N.

Axes: D features, h w the grid, N = h * w places, K labels, S frames, Q queries of a tile, M keys that they see.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from partwhole.video.protocol import Protocol
from partwhole.video.ring import Ring, laid
from partwhole.video.tiles import Tile, tiling

NEVER = float("-inf")


def propagate(features: Iterable[Tensor], first: Tensor, protocol: Protocol) -> Iterator[Tensor]:
    """The labels of each frame, (K, h, w) float32; of the first one as they are given.

    features: (D, h, w) of each frame, one after the other; they are asked for one at a time.
    first: labels (K, h, w) of the first frame: shares of any number of objects or parts, or heat maps of joints.
    """
    frames = iter(features)
    start = next(frames, None)
    if start is None:
        raise ValueError("labels are carried along the frames of a video, and there is no frame")
    along = Propagation(start, first, protocol)
    yield first.float()
    for frame in frames:
        yield along(frame)


def changed(features: Sequence[Tensor], first: Tensor, protocol: Protocol) -> float:
    """The share of places whose strongest label is another one at ``protocol``'s precision than at that of features."""
    exact = propagate(features, first, replace(protocol, dtype="float32"))
    pairs = zip(exact, propagate(features, first, protocol), strict=True)
    next(pairs)
    other = [(a.argmax(0) != b.argmax(0)).float().mean() for a, b in pairs]
    return float(torch.stack(other).mean()) if other else 0.0


class Propagation:
    """The state of a propagation: called with the features (D, h, w) of the next frame, it gives its labels (K, h, w).

    It holds the features and labels of at most ``protocol.context`` + 1 frames, whatever the length of the video.
    """

    def __init__(self, features: Tensor, labels: Tensor, protocol: Protocol):
        if features.ndim != 3 or labels.ndim != 3 or features.shape[1:] != labels.shape[1:]:
            raise ValueError(
                f"features (D, h, w) and labels (K, h, w) of one grid are needed; got {tuple(features.shape)} and "
                f"{tuple(labels.shape)}"
            )
        self.protocol, self.shape = protocol, features.shape
        wide = torch.promote_types(features.dtype, torch.float32)
        self.dtype = torch.bfloat16 if protocol.dtype == "bfloat16" else wide
        rows = laid(features, self.dtype)
        values = labels.flatten(1).mT.to(device=features.device, dtype=wide)
        kept = int(protocol.first != "left")
        self.ring = Ring(rows, values, kept=kept, size=protocol.context)
        among = {"none": 0, "one": 1, "all": protocol.context}[protocol.repeats] if kept else 1
        for _ in range(kept + min(among, protocol.context)):
            self.ring.add(rows, values)
        h, w = features.shape[1:]
        self.tiling = tiling(h, w, kept + protocol.context, protocol.window, protocol.radius, features.device)
        self.rooms: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, features: Tensor) -> Tensor:
        if features.shape != self.shape:
            raise ValueError(f"features are {tuple(features.shape)}, and were {tuple(self.shape)} before")
        rows = laid(features, self.dtype)
        found = self.found(rows)
        self.ring.add(rows, found)
        return found.mT.unflatten(1, features.shape[1:]).contiguous().float()

    def found(self, rows: Tensor) -> Tensor:
        """Labels (N, K) of a frame with features (N, D), by ``laid``, from the frames that are there."""
        out = self.ring.labels.new_empty(len(rows), self.ring.labels.shape[-1])
        for tile in self.tiling:
            met = self.meetings(rows[tile.queries], tile)
            out[tile.queries] = labels_of(met, self.ring.labels, self.protocol)
        return out

    def meetings(self, queries: Tensor, tile: Tile) -> list["Met"]:
        """What the queries (Q, D) of a tile are like: in the first frame, where they see all of it, and in the rest."""
        ring, (h, w) = self.ring, self.shape[1:]
        free, out = int(self.protocol.first == "free"), []
        if free:  # laid out by rows and columns, for ``Met.best``
            out.append(Met(self.product("free", queries, ring.features[0].unflatten(0, (h, w))), None, None, 0))
        if ring.count > free:
            keys, places = ring.features[free : ring.count], None
            if not self.tiling.dense:
                places = tile.keys
                room = self.room("keys", (len(keys), len(places), keys.shape[-1]))
                keys = torch.index_select(keys, 1, places, out=room)
            out.append(Met(self.product("seen", queries, keys), tile.seen, places, free * h * w))
        return out

    def product(self, name: str, queries: Tensor, keys: Tensor) -> Tensor:
        """Affinities (Q, S, M) of queries (Q, D) and keys (S, M, D)."""
        out = self.room(name, (len(queries), keys.shape[0] * keys.shape[1]))
        torch.mm(queries, keys.flatten(0, 1).mT, out=out)
        return out.unflatten(1, keys.shape[:2])

    def room(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Memory that every tile uses again: to ask for it anew costs as much as to fill it."""
        need = torch.Size(shape).numel()
        if name not in self.rooms or self.rooms[name].numel() < need:
            self.rooms[name] = torch.empty(need, dtype=self.dtype, device=self.ring.features.device)
        return self.rooms[name][:need].view(shape)


@dataclass(frozen=True)
class Met:
    """Affinities (Q, S, M) of queries with M places of S frames.

    seen (Q, M) bool, of every frame alike; None for all. places (M,): the number of each in its frame; None where they
    are all there are. begin: how many places there are in frames before these.
    """

    affinity: Tensor
    seen: Tensor | None
    places: Tensor | None
    begin: int

    def best(self, count: int, frame: int) -> tuple[Tensor, Tensor]:
        """The ``count`` greatest affinities of each query, (Q, count) or as many as there are, and their rows among all
        places of all frames, ``frame`` places each; -inf stands for one that is not seen.

        They lie in the ``count`` places whose greatest affinity over the frames is greatest: so the mask is laid on
        places, and only what is in these few is sorted.
        """
        S, M = self.affinity.shape[1:]
        most = self.affinity.amax(1)
        if self.seen is not None:
            most = most.masked_fill_(~self.seen, NEVER)
        kept = min(count, M)
        most, cells = most.topk(kept, 1, sorted=False)
        few = self.affinity.gather(2, cells[:, None].expand(-1, S, -1))
        if self.seen is not None:
            few = few.masked_fill_(most[:, None] == NEVER, NEVER)
        value, at = few.flatten(1).topk(min(count, S * kept), 1)
        return value, self.row(at // kept, cells.gather(1, at % kept), frame)

    def row(self, number: Tensor, cell: Tensor, frame: int) -> Tensor:
        """Of the frame of this number, and a cell among its M."""
        if self.places is None:
            return self.begin + number * self.affinity.shape[2] + cell
        return self.begin + number * frame + self.places[cell]

    def whole(self, frame: int, which: Tensor) -> tuple[Tensor, Tensor]:
        """All affinities of some queries (Q', S * M), -inf where not seen, and their rows (S * M,)."""
        S, M = self.affinity.shape[1:]
        value = self.affinity[which]
        if self.seen is not None:
            value = value.masked_fill_(~self.seen[which][:, None], NEVER)
        number, cell = torch.arange(S, device=value.device)[:, None], torch.arange(M, device=value.device)
        return value.flatten(1), self.row(number, cell, frame).flatten()


def labels_of(met: Sequence[Met], labels: Tensor, protocol: Protocol) -> Tensor:
    """Labels (Q, K) of queries from what they meet, and labels (S, N, K) of all frames."""
    frame, values = labels.shape[1], labels.flatten(0, 1)
    every = torch.arange(len(met[0].affinity), device=labels.device)
    if protocol.mode == "soft":
        return _spread(met, values, frame, protocol.temperature, every, None)
    count = protocol.topk + int(protocol.ties)
    best = [one.best(count, frame) for one in met]
    value, row = (torch.cat(each, 1) for each in zip(*best, strict=True))
    value, at = value.topk(min(count, value.shape[1]), 1)
    row = row.gather(1, at)
    near, far = value[:, : protocol.topk], value[:, protocol.topk :]
    weight = (near.to(values.dtype) / protocol.temperature).softmax(1)
    found = torch.einsum("qk,qkc->qc", weight, values[row[:, : protocol.topk]])
    if far.shape[1]:  # the first one that is left out is as near as the last one that is not
        tied = every[(near[:, -1] == far[:, 0]) & (far[:, 0] > NEVER)]
        if len(tied):
            found[tied] = _spread(met, values, frame, protocol.temperature, tied, near[tied, -1:])
    return found


def _spread(
    met: Sequence[Met], values: Tensor, frame: int, temperature: float, which: Tensor, least: Tensor | None
) -> Tensor:
    """Labels of some queries from all that they see and that is at least ``least`` (Q', 1)."""
    affinity, row = (torch.cat(each, -1) for each in zip(*(one.whole(frame, which) for one in met), strict=True))
    if least is not None:
        affinity = affinity.masked_fill_(affinity < least, NEVER)
    return (affinity.to(values.dtype) / temperature).softmax(1) @ values[row]
