"""Transformers over the tokens of any ``Embed``.

Axes: B batch, L tokens, K visible tokens, D features, H heads, A axes of a place. ``valid`` (B, L) is true where a
token is real; no result at a real token depends on what a padded one holds.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core.encoder import Embed, Encoder, blank

Turn = tuple[Tensor, Tensor]  # cosine and sine of the angle of each pair of features: (B, 1, L, D / 2H)

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"dim": 192, "depth": 12, "heads": 3},
    "small": {"dim": 384, "depth": 12, "heads": 6},
    "base": {"dim": 768, "depth": 12, "heads": 12},
}
"""``TransformerEncoder(embed, **SIZES["small"])``: the usual sizes (Dosovitskiy et al., 2021; Touvron et al., 2021)."""


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim {dim} cannot be split over {heads} heads: choose heads that divide it")
        self.heads = heads
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool, turn: Turn | None = None) -> Tensor:
        q, k, v = self.parts(x, turn)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and mask is None)
        return self.out(y.transpose(1, 2).flatten(2))

    def parts(self, x: Tensor, turn: Turn | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, H, L, D/H) each."""
        # apart along this axis, their gradients are put together as the layer wants them
        q, k, v = (y.transpose(1, 2) for y in self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2))
        return (q, k, v) if turn is None else (turned(q, turn), turned(k, turn), v)

    def first(self, x: Tensor, mask: Tensor | None, turn: Turn | None = None) -> Tensor:
        """How much the first token takes of each, (B, H, L), summing to 1; mask (B, 1, 1, L)."""
        q, k, _ = self.parts(x, turn)
        score = q[:, :, :1] @ k.mT / q.shape[-1] ** 0.5
        return (score if mask is None else score.masked_fill(~mask, -torch.inf)).softmax(-1)[:, :, 0]


def rotary(coordinates: Tensor, width: int, base: float) -> Turn:
    """The turns of rotary positions (Su et al., 2021) for heads of ``width`` features, over any number of axes.

        angle[b, l, a, j] = coordinates[b, l, a] / base^(j / n),   j < n = width // 2A

    Each angle turns one pair of features; pairs that are left over are not turned.
    """
    axes = coordinates.shape[-1]
    count = width // (2 * axes)
    if count == 0:
        raise ValueError(f"heads of {width} features cannot be turned by {axes} axes: at least {2 * axes} are needed")
    wide = coordinates.to(torch.promote_types(coordinates.dtype, torch.float32))
    frequency = base ** -(torch.arange(count, device=wide.device, dtype=wide.dtype) / count)
    angle = (wide[..., None] * frequency).flatten(2)
    angle = F.pad(angle, (0, width // 2 - angle.shape[-1]))[:, None]
    return angle.cos(), angle.sin()


def turned(x: Tensor, turn: Turn) -> Tensor:
    """x (B, H, L, D/H), of which pair i is features i and i + D/2H, turned."""
    cos, sin = (t.to(x.dtype) for t in turn)
    width = cos.shape[-1]
    a, b, rest = x[..., :width], x[..., width : 2 * width], x[..., 2 * width :]
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], -1)


class Block(nn.Module):
    """Pre-norm attention and MLP; in training each branch of a sample is dropped with probability ``drop_path``."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.drop_path = 0.0
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool, turn: Turn | None = None) -> Tensor:
        x = x + self.drop(self.attention(self.norm1(x), mask, causal, turn))
        return x + self.drop(self.mlp(self.norm2(x)))

    def drop(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return branch
        kept = torch.rand(len(branch), 1, 1, device=branch.device) >= self.drop_path
        return branch * kept / (1 - self.drop_path)


class Transformer(nn.Module):
    """Tokens (B, L, dim) -> tokens; the drop rate rises linearly with depth to ``drop_path`` (Huang et al., 2016)."""

    def __init__(self, dim: int, depth: int, heads: int, *, causal: bool = False, drop_path: float = 0.0):
        super().__init__()
        self.causal = causal
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.drop(drop_path)

    def drop(self, rate: float) -> None:
        """Drop branches at this rate in the last block, and less before it, from now on."""
        if not 0 <= rate < 1:
            raise ValueError(f"drop_path is the chance to drop a branch, in [0, 1); got {rate}")
        for i, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            block.drop_path = rate * (i + 1) / len(self.blocks)

    def forward(self, x: Tensor, valid: Tensor | None = None, turn: Turn | None = None) -> Tensor:
        return self.norm(self.layers(x, valid, turn, count=1)[-1])

    def layers(self, x: Tensor, valid: Tensor | None = None, turn: Turn | None = None, *, count: int) -> list[Tensor]:
        """What the last ``count`` blocks give, the last one last, (B, L, dim) each, without the norm at the end."""
        mask = None if valid is None else attention_mask(valid, self.causal)
        last = [x]
        for block in self.blocks:
            x = block(x, mask, self.causal, turn)
            last = [*last, x][-count:]
        return last


def attention_mask(valid: Tensor, causal: bool = False) -> Tensor:
    """(B, 1, 1 or L, L), true where a key may be seen. Every query sees a key, if need be itself, so none is NaN."""
    mask = valid[:, None, None, :]
    if not causal:
        return mask | ~valid.any(1)[:, None, None, None]
    L = valid.shape[1]
    past = torch.ones(L, L, dtype=torch.bool, device=valid.device).tril()
    return (mask & past) | torch.eye(L, dtype=torch.bool, device=valid.device)


class TransformerEncoder(Encoder):
    """A transformer over the tokens of ``embed``.

    ``cls`` puts a learned token before them, which is returned first and stands for the whole; ``registers`` as many
    more, which are not returned (Darcet et al., 2024). ``rope`` turns queries and keys by ``embed.coordinates``: it is
    the base of ``rotary``, 100 for places in a picture (DINOv3), 10,000 for those in a text.

    ``keep``, the tokens that stay visible, leaves (B, K, dim) tokens: those of each row, K of the row with most;
    ``pack(keep)`` says which they are, and in which order a causal encoder reads them. ``hidden`` and ``token``
    (dim,): the token enters in place of the hidden ones, with its position. Either is a mask (B, L) bool, or indices
    (B, K): see ``pack``. Neither counts special tokens.
    """

    incidental = frozenset({"drop_path"})

    def __init__(
        self,
        embed: Embed,
        *,
        dim: int,
        depth: int,
        heads: int,
        causal: bool = False,
        drop_path: float = 0.0,
        cls: bool = False,
        registers: int = 0,
        rope: float | None = None,
    ):
        super().__init__()
        if causal and (cls or registers):
            raise ValueError("a causal encoder has no cls and no registers: its first tokens see only themselves")
        self.embed, self.dim, self.depth, self.heads = embed, dim, depth, heads
        self.causal, self.drop_path, self.rope = causal, drop_path, rope
        self.cls, self.registers, self.special = cls, registers, int(cls)
        self.first = nn.Parameter(torch.randn(cls + registers, dim) * 0.02) if cls or registers else None
        self.trunk = Transformer(dim, depth, heads, causal=causal, drop_path=drop_path)

    def forward(
        self,
        x: Tensor,
        *,
        keep: Tensor | None = None,
        hidden: Tensor | None = None,
        token: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        return self._returned(self.trunk(*self._entered(x, keep, hidden, token, valid)))

    def layers(self, x: Tensor, count: int, *, valid: Tensor | None = None) -> list[Tensor]:
        """The tokens after each of the last ``count`` blocks, the last one's last, without the norm at the end."""
        if not 1 <= count <= self.depth:
            raise ValueError(f"the last {count} layers of {self.depth} are asked for: ask for 1 to {self.depth}")
        return [self._returned(y) for y in self.trunk.layers(*self._entered(x, None, None, None, valid), count=count)]

    @torch.no_grad()
    def attention(self, x: Tensor, *, valid: Tensor | None = None) -> Tensor:
        """What the CLS token takes of each token of the input in the last block, by each head: (B, H, L).

        Its shares of itself and of registers are left out, so the rest sums to less than 1; 0 where a token is not
        real. ValueError for an encoder without a CLS token.
        """
        if not self.cls or self.first is None:
            raise ValueError("only a CLS token's attention says what the whole is made of: build this encoder with cls")
        tokens, real, turn = self._entered(x, None, None, None, valid)
        block: Any = self.trunk.blocks[-1]
        before = self.trunk.layers(tokens, real, turn, count=2)[0]
        mask = None if real is None else attention_mask(real)
        return block.attention.first(block.norm1(before), mask, turn)[..., len(self.first) :]

    def _entered(
        self, x: Tensor, keep: Tensor | None, hidden: Tensor | None, token: Tensor | None, valid: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Turn | None]:
        """What the trunk is given: tokens, which of them are real, and their turns."""
        given = {} if valid is None else {"valid": valid}
        tokens, real = self.embed(x, **given), self.embed.tokens_valid(x, valid)
        for name, marks in (("valid", real), ("keep", keep), ("hidden", hidden)):
            if marks is None:
                continue
            listed = name != "valid" and marks.dtype == torch.int64
            if not listed and marks.dtype != torch.bool:
                raise ValueError(f"{name} is {marks.dtype}: a mask is bool, and indices of tokens are int64")
            if len(marks) != len(tokens) or (not listed and marks.shape != tokens.shape[:2]):
                raise ValueError(f"{name} is {tuple(marks.shape)}, but the tokens are {tuple(tokens.shape[:2])}")
        if (hidden is None) != (token is None):
            raise ValueError("hidden says where token enters: give both or neither")
        if hidden is not None and token is not None:
            masked = token + self.embed.position(x, **given)
            tokens = torch.where(marked(hidden, tokens.shape[1])[..., None], masked.to(tokens.dtype), tokens)
        place = None if self.rope is None else blank(self.embed.coordinates(x, **given), real)
        seen = real if keep is None else _both(marked(keep, tokens.shape[1]), real)
        tokens = self.embed.situated(tokens, seen)
        if keep is not None:
            index, real = pack(keep, real)
            tokens, place = take(tokens, index), None if place is None else take(place, index)
        tokens = blank(tokens, real)
        if self.first is not None:
            ahead = len(self.first)
            tokens = torch.cat([self.first.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], 1)
            real = None if real is None else F.pad(real, (ahead, 0), value=True)
            place = None if place is None else F.pad(place, (0, 0, ahead, 0))  # at 0: these are not turned
        turn = None
        if place is not None and self.rope is not None:
            turn = rotary(place, self.dim // self.heads, self.rope)
        return tokens, real, turn

    def _returned(self, tokens: Tensor) -> Tensor:
        if not self.registers:
            return tokens
        return torch.cat([tokens[:, : self.special], tokens[:, self.special + self.registers :]], 1)

    def stages(self) -> list[nn.Module]:
        return [self.embed, *self.trunk.blocks]

    def real(self, x: Tensor, valid: Tensor | None) -> Tensor | None:
        real = self.embed.tokens_valid(x, valid)
        return real if real is None or not self.special else F.pad(real, (self.special, 0), value=True)


# ------------------------------------------------------------------ some of the tokens


def pack(marks: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Which tokens are meant, in each row: index (B, K) and real (B, K), false beyond a row's own number.

    marks is a mask (B, L) bool, true for them; or it is their indices (B, K) int64 already, in any order, each once, -1
    beyond their number. Of a mask, K >= 1 is the most that any row has: it has to be looked up, which waits for the
    device and cannot be compiled in one graph. Indices carry it in their shape; ``masks.indices`` makes them of masks.
    Tokens that ``valid`` (B, L) says are not real are never meant.
    """
    if marks.dtype != torch.bool:
        index, real = marks.clamp(min=0), marks >= 0
        return index, real if valid is None else real & valid.gather(1, index)
    if valid is not None:
        marks = marks & valid
    most = max(int(marks.sum(1).max()), 1)
    index = marks.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return index, marks.gather(1, index)


def take(tokens: Tensor, index: Tensor) -> Tensor:
    """tokens (B, L, D) at index (B, K): (B, K, D)."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def put(rows: Tensor, index: Tensor, real: Tensor, length: int) -> Tensor:
    """The reverse of ``take``: rows (B, K, D), where real, at their index among ``length`` tokens; zeros elsewhere."""
    at = index.masked_fill(~real, length)[..., None].expand_as(rows)  # what is not real goes behind the end
    return rows.new_zeros(len(rows), length + 1, rows.shape[-1]).scatter(1, at, rows)[:, :length]


def _both(marks: Tensor, valid: Tensor | None) -> Tensor:
    return marks if valid is None else marks & valid


def marked(marks: Tensor, length: int) -> Tensor:
    """A mask (B, length) of marks of either kind: see ``pack``."""
    if marks.dtype == torch.bool:
        return marks
    index, real = pack(marks)
    return put(real[..., None], index, real, length)[..., 0]
