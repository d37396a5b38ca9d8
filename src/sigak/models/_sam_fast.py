"""Segment Anything without what it does more than once: the same answers in a fraction of the time.

`embed` runs timm's ViT with attention over row blocks, so that no table of all pairs of places is
ever written with its position biases. `Crowd` answers many prompts about one picture. It rests on
this: every prompt begins with the same picture X (places x channels), and what prompts do to it is
of low rank. After the first exchange the picture is norm(X + A U), where A holds a prompt's
attention weights (places x heads*tokens, 56 columns for a click) and U its values (56 x channels).
All that is ever asked of it are products with matrices: of X, which are computed once for all
prompts, and of A, which are small. The norm only scales places, by a factor that follows from the
same products. So the picture of a prompt is never formed; Kirillov et al. 2023 form and normalise
4,096 x 256 numbers twice a prompt and multiply them with eight matrices.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sigak.models._sam_decoder import HEADS

__all__ = ["Crowd", "Met", "embed"]

_PLACES = 1024  # of the picture that are enlarged at once: they stay in the cache


class Crowd:
    """decoder: the network's; picture (N, d): the embedding's places with what stands for "no
    earlier mask" added; places (N, d) their position codes.

    Names: Z the picture's centred channels, (d, N); `kz`, `vz`, `qz` what a layer's keys, values
    and queries see of it, (heads, c, N), `kp` and `qp` what they see of the places.
    """

    def __init__(self, decoder: Any, picture: Tensor, places: Tensor) -> None:
        self.decoder = decoder
        transformer = decoder.transformer
        self.first: Any = transformer.layers[0]
        self.second: Any = transformer.layers[1]
        self.last: Any = transformer.final_attn_token_to_image
        self._prepare_first(picture.T, places.T)
        self._prepare_second(places.T)
        self._prepare_last(places.T)
        self._prepare_upscaling()

    # --- what all prompts share -------------------------------------------------------------

    def _prepare_first(self, picture: Tensor, places: Tensor) -> None:
        look, back = self.first.cross_attn_token_to_image, self.first.cross_attn_image_to_token
        coded = picture + places
        self.k1 = _apply(look.k_proj, coded).transpose(1, 2).contiguous()
        self.v1 = _apply(look.v_proj, picture).transpose(1, 2).contiguous()
        self.q1 = _apply(back.q_proj, coded)
        norm = self.first.norm4
        z = _centred(picture + back.out_proj.bias[:, None])
        self.z_square = z.square().sum(0)
        self.zo = _heads(back.out_proj.weight.T @ z)
        gz = norm.weight[:, None] * z
        self.kz, self.vz, self.qz = (
            _heads(linear.weight @ gz)
            for linear in (
                self.second.cross_attn_token_to_image.k_proj,
                self.second.cross_attn_token_to_image.v_proj,
                self.second.cross_attn_image_to_token.q_proj,
            )
        )
        self.z1 = _centred(gz)
        self.zo1 = _heads(back.out_proj.weight.T @ _centred(norm.weight[:, None] * self.z1))

    def _prepare_second(self, places: Tensor) -> None:
        look, back = self.second.cross_attn_token_to_image, self.second.cross_attn_image_to_token
        shift = self.first.norm4.bias
        self.kp = _heads(look.k_proj.weight @ places)
        self.v_shift = _heads(look.v_proj.weight @ shift + look.v_proj.bias)
        self.qp = _apply(back.q_proj, places + shift[:, None])
        self.zo2 = _heads(back.out_proj.weight.T @ self.z1)
        self.c1 = _centred(shift + back.out_proj.bias)
        self.z1_square = self.z1.square().sum(0)
        self.z1_c1 = self.c1 @ self.z1

    def _prepare_last(self, places: Tensor) -> None:
        norm = self.second.norm4
        gz, gc = norm.weight[:, None] * self.z1, norm.weight * self.c1
        key, value = self.last.k_proj, self.last.v_proj
        self.kfz, self.kfc = _heads(key.weight @ gz), _heads(key.weight @ gc)
        self.kfp = _heads(key.weight @ places)
        self.vfz, self.vfc = _heads(value.weight @ gz), _heads(value.weight @ gc)
        self.vf_shift = _heads(value.weight @ norm.bias + value.bias)

    def _prepare_upscaling(self) -> None:
        """The first enlargement as a matrix of four parts (one a new pixel) of d / 4 channels."""
        enlarge, second = self.decoder.output_upscaling[0], self.decoder.output_upscaling[3]
        weight = enlarge.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (d, d)
        after = self.second.norm4
        self.up = weight * after.weight
        self.up_z, self.up_c = (self.up @ self.z1).T.contiguous(), self.up @ self.c1
        self.up_shift = weight @ after.bias + enlarge.bias.repeat(4)
        self.up2 = second.weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()  # (d / 2, d / 4)
        self.up2_shift = second.bias.repeat(4)

    # --- prompts ----------------------------------------------------------------------------

    def ask(self, prompts: Tensor) -> list[Met]:
        """prompts (Q, T, d), tokens of the prompt encoder -> a `Met` each, which knows the
        predicted IoU (4,) and makes masks of it on demand.
        """
        codes = self.decoder.all_tokens(prompts)
        tokens = self._look_first(codes)
        asked = self._values(self.first.cross_attn_image_to_token, tokens, codes)
        halves = [self._exchange_first(*one) for one in zip(*asked, strict=True)]
        tokens = self._look_second(tokens, codes, halves)
        asked = self._values(self.second.cross_attn_image_to_token, tokens, codes)
        for half, *one in zip(halves, *asked, strict=True):
            self._exchange_second(half, *one)
        queries = _split(self.last.q_proj(tokens + codes)) * self._scale(self.last)
        heard = torch.stack([self._hear(h, q[:, :1]) for h, q in zip(halves, queries)])
        judged = self._final(tokens[:, :1], heard)
        quality = self.decoder.iou_prediction_head(judged[:, 0])
        for place, half in enumerate(halves):
            half.tokens, half.queries = tokens[place], queries[place]
            half.quality = quality[place]
        return halves

    def masks(self, met: Met, chosen: Tensor) -> Tensor:
        """(K, 4 h, 4 w) logits of the masks `chosen` (K,) int64, 0 to 3, of one prompt."""
        heard = self._hear(met, met.queries[:, 1:5])[None]
        tokens = self._final(met.tokens[None, 1:5], heard)[0]
        heads = self.decoder.output_hypernetworks_mlps
        made = torch.stack([heads[i](tokens[i]) for i in chosen.tolist()])
        side = int(met.scale.shape[0] ** 0.5)
        return self._enlarged(met, made, side)

    def _scale(self, attention: Any) -> float:
        return float((attention.q_proj.out_features // HEADS) ** -0.5)

    def _look_first(self, codes: Tensor) -> Tensor:
        layer = self.first
        tokens = layer.meet(codes, codes)
        look = layer.cross_attn_token_to_image
        queries = _split(look.q_proj(tokens + codes))  # (Q, H, T, c)
        flat = queries.transpose(0, 1).flatten(1, 2)
        seen = F.scaled_dot_product_attention(flat[None], self.k1[None], self.v1[None])[0]
        seen = seen.view(HEADS, len(codes), -1, seen.shape[2]).transpose(0, 1)
        tokens = layer.norm2(tokens + _joined(look, seen))
        return layer.think(tokens)  # type: ignore[no-any-return]

    def _values(
        self, attention: Any, tokens: Tensor, codes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the picture asks tokens for: keys and values (Q, H, T, c), and the values as they
        arrive in the picture's channels (Q, H T, d).
        """
        keys = _split(attention.k_proj(tokens + codes)) * self._scale(attention)
        values = _split(attention.v_proj(tokens))
        out = _heads(attention.out_proj.weight.T)  # (H, c, d)
        return keys, values, (values @ out).flatten(1, 2)

    def _exchange_first(self, keys: Tensor, values: Tensor, arrived: Tensor) -> Met:
        """keys, values (H, T, c), arrived (R, d) of one prompt."""
        rank, width = arrived.shape
        tables = keys.new_empty((2, *keys.shape[:2], self.q1.shape[2]))
        torch.softmax(torch.bmm(keys, self.q1), dim=1, out=tables[0])
        tables = tables.view(2 * rank, -1)
        centred = arrived - arrived.mean(1, keepdim=True)
        both = torch.bmm(values, self.zo).flatten(0, 1)
        both.addmm_(centred @ centred.T, tables[:rank], beta=2)
        square = both.mul_(tables[:rank]).sum(0).add_(self.z_square)
        scale = (square / width + self.first.norm4.eps).rsqrt_()
        return Met(tables, scale, values, centred * self.first.norm4.weight)

    def _look_second(self, tokens: Tensor, codes: Tensor, halves: list[Met]) -> Tensor:
        layer = self.second
        tokens = layer.meet(tokens, codes)
        look = layer.cross_attn_token_to_image
        queries = _split(look.q_proj(tokens + codes)) * self._scale(look)
        seen = torch.stack([self._see(*one) for one in zip(halves, queries, strict=True)])
        tokens = layer.norm2(tokens + _joined(look, seen))
        return layer.think(tokens)  # type: ignore[no-any-return]

    def _scores(self, met: Met, asked: Tensor, weight: Tensor, maps: tuple[Tensor, Tensor]) -> Any:
        """What `asked` (H, T, c) of the tokens has in common with every place after the first
        exchange, (H, T, N). weight (inner, d) of the layer; maps: what it sees of Z and of places.
        """
        mixed = (asked @ _heads(weight)).flatten(0, 1) @ met.arrived.T  # (R, R)
        scores = torch.bmm(asked, maps[0])
        flat = scores.view(-1, scores.shape[2])
        flat.addmm_(mixed, met.first).mul_(met.scale)
        return scores.baddbmm_(asked, maps[1])

    def _see(self, met: Met, queries: Tensor) -> Tensor:
        """queries (H, T, c) of one prompt -> what they see of its picture, (H, T, c)."""
        look = self.second.cross_attn_token_to_image
        scores = self._scores(met, queries, look.k_proj.weight, (self.kz, self.kp))
        weights = scores.softmax(dim=2).mul_(met.scale)
        own = torch.bmm(weights, self.vz.transpose(1, 2))
        through = _heads(weights.flatten(0, 1) @ met.first.T)
        values = _heads(look.v_proj.weight)
        return (
            own + torch.bmm(through, met.arrived @ values.transpose(1, 2)) + self.v_shift[:, None]
        )

    def _exchange_second(self, met: Met, keys: Tensor, values: Tensor, arrived: Tensor) -> None:
        """The picture of one prompt after it looked at the tokens again; kept in `met`."""
        back, (rank, width) = self.second.cross_attn_image_to_token, arrived.shape
        scores = self._scores(met, keys, back.q_proj.weight, (self.qz, self.qp))
        torch.softmax(scores, dim=1, out=met.tables[rank:].view_as(scores))
        earlier = met.arrived - met.arrived.mean(1, keepdim=True)  # w1
        centred = arrived - arrived.mean(1, keepdim=True)  # u2
        met.arrived = torch.cat([earlier, centred])
        met.first.mul_(met.scale)  # from here on A1 is only needed scaled
        # |s z1 + c1 + w1 A1 + u2 A2|^2, place by place
        gram = met.arrived @ met.arrived.T
        gram[:rank, rank:] = 0  # the mixed terms, twice, with the second half
        gram[rank:, :rank] *= 2
        shift = 2 * (met.arrived @ self.c1)[:, None]
        square = met.scale * (met.scale * self.z1_square + 2 * self.z1_c1)
        square += self.c1.square().sum()
        for half, seen, own in ((0, self.zo1, met.values), (1, self.zo2, values)):
            part = slice(half * rank, (half + 1) * rank)
            linear = torch.bmm(2 * own, seen).flatten(0, 1).mul_(met.scale)
            reach = (half + 1) * rank
            linear.addmm_(gram[part, :reach], met.tables[:reach]).add_(shift[part])
            square += linear.mul_(met.tables[part]).sum(0)
        met.outer = (square / width + self.second.norm4.eps).rsqrt_()

    def _hear(self, met: Met, queries: Tensor) -> Tensor:
        """queries (H, T, c) of one prompt's tokens -> what they see at last, (H, T, c)."""
        norm = self.second.norm4
        keys = _heads(norm.weight * self.last.k_proj.weight)
        mixed = (queries @ keys).flatten(0, 1) @ met.arrived.T  # (R', 2 R)
        scores = torch.bmm(queries, self.kfz).mul_(met.scale).add_(queries @ self.kfc[..., None])
        flat = scores.view(-1, scores.shape[2])
        flat.addmm_(mixed, met.tables).mul_(met.outer)
        weights = scores.baddbmm_(queries, self.kfp).softmax(dim=2).mul_(met.outer)
        through = _heads(weights.flatten(0, 1) @ met.tables.T)
        values = _heads(norm.weight * self.last.v_proj.weight)
        seen = torch.bmm(through, met.arrived @ values.transpose(1, 2))
        seen += weights.sum(2, keepdim=True) * self.vfc[:, None]
        seen += torch.bmm(weights.mul_(met.scale), self.vfz.transpose(1, 2))
        return seen + self.vf_shift[:, None]

    def _final(self, tokens: Tensor, heard: Tensor) -> Tensor:
        norm = self.decoder.transformer.norm_final_attn
        found: Tensor = norm(tokens + _joined(self.last, heard))
        return found

    def _enlarged(self, met: Met, made: Tensor, side: int) -> Tensor:
        """made (K, d / 8), what of the enlarged picture each mask is made of -> (K, 4 h, 4 w)."""
        norm, outer = self.decoder.output_upscaling[1], met.outer[None]
        # A (2 R + 2, N), W (d, 2 R + 2): what places have, and what comes of it
        places = torch.cat([met.tables * outer, outer, torch.ones_like(outer)])
        mix = [self.up @ met.arrived.T, self.up_c[:, None], self.up_shift[:, None]]
        mixed = torch.cat(mix, dim=1).T
        scale, made = (met.scale * met.outer)[:, None], made.T
        masks = []
        for start in range(0, len(scale), _PLACES):
            part = slice(start, start + _PLACES)
            x = (self.up_z[part] * scale[part]).addmm_(places[:, part].T, mixed)
            x = x.view(4 * len(x), -1)
            x = F.gelu(F.layer_norm(x, x.shape[1:], norm.weight, norm.bias, norm.eps))
            x = F.gelu(F.linear(x, self.up2, self.up2_shift))  # (4 n, 4 d / 8)
            masks.append(x.view(4 * len(x), -1) @ made)  # (4 4 n, K)
        # places in rows and columns, then the two rows and two columns of each enlargement
        grid = torch.cat(masks).view(side, -1, 2, 2, 2, 2, made.shape[1])
        return grid.permute(6, 0, 2, 4, 1, 3, 5).reshape(made.shape[1], 4 * side, -1)


@dataclass
class Met:
    """One prompt and what it made of the picture.

    tables (2 R, N): attention weights of the first exchange, then those of the second; arrived (R
    or 2 R, d) what they bring; scale (N,) and outer (N,) what the two norms multiply places with;
    values (H, T, c) of the first exchange; quality (4,) predicted IoU.
    """

    tables: Tensor
    scale: Tensor
    values: Tensor
    arrived: Tensor
    outer: Tensor = field(init=False)
    tokens: Tensor = field(init=False)
    queries: Tensor = field(init=False)
    quality: Tensor = field(init=False)

    @property
    def first(self) -> Tensor:
        """(R, N) of the first exchange."""
        return self.tables[: len(self.tables) // 2]


def _heads(x: Tensor) -> Tensor:
    """(inner, ...) -> (heads, c, ...)."""
    return x.reshape(HEADS, -1, *x.shape[1:]).contiguous()


def _apply(linear: Any, x: Tensor) -> Tensor:
    """(d, N) -> (heads, c, N)."""
    return _heads(torch.addmm(linear.bias[:, None], linear.weight, x))


def _split(x: Tensor) -> Tensor:
    """(Q, T, inner) -> (Q, heads, T, c)."""
    return x.view(*x.shape[:2], HEADS, -1).transpose(1, 2)


def _joined(attention: Any, seen: Tensor) -> Tensor:
    """(Q, heads, T, c) -> (Q, T, d)."""
    found: Tensor = attention.out_proj(seen.transpose(1, 2).flatten(2))
    return found


def _centred(x: Tensor) -> Tensor:
    """Without the mean over the channels, the first dimension."""
    return x - x.mean(0, keepdim=True)


# ------------------------------------------------------------------ encoder

_SCORES = 1 << 20  # numbers of an attention table that are held at once: they stay in the cache


def embed(net: Any, images: Tensor) -> Tensor:
    """images (B, 3, H, W) through timm's ViT for Segment Anything -> (B, dim, h, w). Where
    gradients or an export are wanted, by timm's own forward.
    """
    if (
        torch.is_grad_enabled()
        or torch._C._get_tracing_state() is not None
        or torch.compiler.is_compiling()
    ):
        return net.forward_features(images)  # type: ignore[no-any-return]
    x = net.patch_embed(images) + net.pos_embed
    for block in net.blocks:
        x = x + _windows(block, block.norm1(x))
        x = x + block.mlp(block.norm2(x))
    found: Tensor = net.neck(x.permute(0, 3, 1, 2))
    return found


def _windows(block: Any, x: Tensor) -> Tensor:
    """Attention of one layer, window by window where it has windows: (B, h, w, C) -> the same."""
    from timm.models.vision_transformer_sam import window_partition, window_unpartition

    if not block.window_size:
        return _attend(block.attn, x)
    parts, padded = window_partition(x, block.window_size)
    parts = _attend(block.attn, parts)
    return window_unpartition(parts, block.window_size, (x.shape[1], x.shape[2]), padded)  # type: ignore[no-any-return]


def _attend(attention: Any, x: Tensor) -> Tensor:
    """Attention of every place to every place, with position biases that are a sum of one for the
    rows' distance and one for the columns': (B, h, w, C) -> the same.
    """
    from timm.models.vision_transformer_sam import get_rel_pos

    batch, height, width, _ = x.shape
    heads, count = attention.num_heads, height * width
    parts = attention.qkv(x).view(batch, count, 3, heads, -1).permute(2, 0, 3, 1, 4).flatten(1, 2)
    q, k, v = parts.contiguous().unbind(0)  # (B heads, N, c) each
    grid = q.view(-1, height, width, q.shape[2])
    rows = get_rel_pos(height, height, attention.rel_pos_h).to(q.dtype)
    columns = get_rel_pos(width, width, attention.rel_pos_w).to(q.dtype)
    down = torch.einsum("bhwc,hkc->bhwk", grid, rows)[..., None]
    across = torch.einsum("bhwc,wkc->bhwk", grid, columns)[..., None, :]
    grid, k = grid * attention.scale, k.transpose(1, 2)
    out = torch.empty_like(grid)
    most = max(1, _SCORES // count)  # queries at a time
    step_rows = min(height, max(1, most // width))
    step = max(1, most // (step_rows * width))
    for i in range(0, len(q), step):
        for y in range(0, height, step_rows):
            part = (slice(i, i + step), slice(y, y + step_rows))
            bias = (down[part] + across[part]).flatten(1, 2).flatten(2)
            scores = torch.baddbmm(bias, grid[part].flatten(1, 2), k[i : i + step])
            seen = torch.bmm(scores.softmax(dim=2), v[i : i + step])
            out[part] = seen.view_as(out[part])
    joined = out.view(batch, heads, count, -1).transpose(1, 2).reshape(batch, height, width, -1)
    found: Tensor = attention.proj(joined)
    return found
