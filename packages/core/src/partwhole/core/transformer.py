"""Transformers over the tokens of any ``Embed``.

Axes: B batch, L tokens, K visible tokens, D features, H heads, A axes of a place. ``valid`` (B, L) is true where a
token is real; no result at a real token depends on what a padded one holds.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partwhole.core.encoder import Embed, Encoder, blank

Turn = tuple[Tensor, Tensor]  # cosine and sine of the angle of each pair of features: (B, 1, L, D / 2H)

SIZES = {
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
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, L, D/H) each
        if turn is not None:
            q, k = turned(q, turn), turned(k, turn)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and mask is None)
        return self.out(y.transpose(1, 2).flatten(2))


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
        mask = None if valid is None else attention_mask(valid, self.causal)
        for block in self.blocks:
            x = block(x, mask, self.causal, turn)
        return self.norm(x)


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

    ``keep`` (B, L), true for the tokens that stay visible, leaves (B, K, dim) tokens: the visible ones of each row in
    their order, K of the row with most; ``pack(keep)`` says which they are. ``hidden`` (B, L) and ``token`` (dim,):
    where hidden is true, the token enters in place of what is there, with its position. Neither counts special tokens.
    """

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
        given = {} if valid is None else {"valid": valid}
        tokens, real = self.embed(x, **given), self.embed.tokens_valid(x, valid)
        for name, mask in (("valid", real), ("keep", keep), ("hidden", hidden)):
            if mask is not None and mask.shape != tokens.shape[:2]:
                raise ValueError(f"{name} is {tuple(mask.shape)}, but the tokens are {tuple(tokens.shape[:2])}")
        if (hidden is None) != (token is None):
            raise ValueError("hidden says where token enters: give both or neither")
        if hidden is not None and token is not None:
            tokens = torch.where(hidden[..., None], (token + self.embed.position(x, **given)).to(tokens.dtype), tokens)
        place = None if self.rope is None else blank(self.embed.coordinates(x, **given), real)
        if keep is not None:
            index, real = pack(keep if real is None else keep & real)
            tokens = tokens.gather(1, index[..., None].expand(-1, -1, self.dim))
            place = None if place is None else place.gather(1, index[..., None].expand(-1, -1, place.shape[-1]))
        tokens = blank(tokens, real)
        if self.first is not None:
            ahead = len(self.first)
            tokens = torch.cat([self.first.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], 1)
            real = None if real is None else F.pad(real, (ahead, 0), value=True)
            place = None if place is None else F.pad(place, (0, 0, ahead, 0))  # at 0: these are not turned
        turn = None
        if place is not None and self.rope is not None:
            turn = rotary(place, self.dim // self.heads, self.rope)
        tokens = self.trunk(tokens, real, turn)
        if self.registers:
            tokens = torch.cat([tokens[:, : self.special], tokens[:, self.special + self.registers :]], 1)
        return tokens

    def real(self, x: Tensor, valid: Tensor | None) -> Tensor | None:
        real = self.embed.tokens_valid(x, valid)
        return real if real is None or not self.special else F.pad(real, (self.special, 0), value=True)


def pack(keep: Tensor) -> tuple[Tensor, Tensor]:
    """Where the true entries of each row are: index (B, K) and valid (B, K), K >= 1 the most that any row has.

    keep (B, L) bool. Beyond a row's own count, index points at entries that are not true, and valid is false.
    """
    most = max(int(keep.sum(1).max()), 1)
    index = keep.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return index, keep.gather(1, index)
