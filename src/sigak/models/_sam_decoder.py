"""SAM's prompt encoder and mask decoder: https://arxiv.org/abs/2304.02643, section 3, appendix A.

Parameters have the names that published weights have. Points, boxes and masks are those of the
network's square canvas; `sigak.tasks.prompt` brings them there from a file's frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "HEADS",
    "Asked",
    "Attention",
    "ChannelNorm",
    "Head",
    "Layer",
    "MaskDecoder",
    "Mlp",
    "PositionEncoding",
    "PromptEncoder",
    "Transformer",
]

HEADS = 8
_MASKS = 4  # of a prompt: the whole answer, and three for prompts that could mean several things
_NOT_A_POINT = -1  # label of the point that stands for "there is no box"


@dataclass(frozen=True)
class Asked:
    """Prompts for Q masks of one picture, on the canvas.

    points (Q, K, 2) x, y; labels (Q, K) int64, 1 on the object, 0 beside it, -1 for none; boxes
    (Q, 4) xyxy; masks (Q, 1, 4 h, 4 w) earlier answers, for an embedding of h x w places.
    """

    points: Tensor | None = None
    labels: Tensor | None = None
    boxes: Tensor | None = None
    masks: Tensor | None = None

    def __len__(self) -> int:
        """Q."""
        known = (self.points, self.boxes, self.masks)
        return next((len(part) for part in known if part is not None), 0)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of (B, C, H, W)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class PositionEncoding(nn.Module):
    """Sines and cosines of random projections (Tancik et al. 2020, arXiv 2006.10739)."""

    def __init__(self, pairs: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, pairs))

    def forward(self, places: Tensor) -> Tensor:
        """(..., 2) x, y as shares of the canvas -> (..., 2 pairs)."""
        turned = 2 * math.pi * ((2 * places - 1) @ self.positional_encoding_gaussian_matrix)  # type: ignore[operator]
        return torch.cat([turned.sin(), turned.cos()], dim=-1)


class PromptEncoder(nn.Module):
    """dim: width of a token; size (H, W) of the canvas, grid (h, w) of the picture's embedding."""

    def __init__(self, dim: int, size: tuple[int, int], grid: tuple[int, int]) -> None:
        super().__init__()
        self.size, self.grid = size, grid
        self.pe_layer = PositionEncoding(dim // 2)
        # beside the object, on it, a box's upper left corner, its lower right one
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, dim) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, 4, 2, 2), ChannelNorm(4), nn.GELU(),
            nn.Conv2d(4, 16, 2, 2), ChannelNorm(16), nn.GELU(),
            nn.Conv2d(16, dim, 1),
        )  # fmt: skip
        self.no_mask_embed = nn.Embedding(1, dim)

    def places(self) -> Tensor:
        """(h w, dim): the position code of every place of the embedding, row by row."""
        height, width = self.grid
        device = self.no_mask_embed.weight.device
        y = (torch.arange(height, device=device) + 0.5) / height
        x = (torch.arange(width, device=device) + 0.5) / width
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        coded: Tensor = self.pe_layer(grid.flatten(0, 1))
        return coded

    def tokens(self, asked: Asked) -> Tensor:
        """(Q, T, dim): a token a point, two a box; a point that is none where there is no box."""
        parts = []
        if asked.points is not None and asked.labels is not None:
            points, labels = asked.points, asked.labels
            if asked.boxes is None:
                points = F.pad(points, (0, 0, 0, 1))
                labels = F.pad(labels, (0, 1), value=_NOT_A_POINT)
            parts.append(self._points(points, labels))
        if asked.boxes is not None:
            corners = self._coded(asked.boxes.reshape(-1, 2, 2))
            kinds = torch.cat([self.point_embeddings[k].weight for k in (2, 3)])  # type: ignore[misc]
            parts.append(corners + kinds)
        if not parts:
            return self.no_mask_embed.weight.new_zeros(len(asked), 0, self.pe_layer_dim)
        return torch.cat(parts, dim=1)

    @property
    def pe_layer_dim(self) -> int:
        """Width of a token."""
        return int(self.no_mask_embed.weight.shape[1])

    def _points(self, points: Tensor, labels: Tensor) -> Tensor:
        table = torch.cat(
            [self.not_a_point_embed.weight] + [self.point_embeddings[k].weight for k in (0, 1)]  # type: ignore[misc]
        )
        coded = self._coded(points) * (labels != _NOT_A_POINT)[..., None]
        return coded + table[labels + 1]

    def _coded(self, points: Tensor) -> Tensor:
        # Published weights were trained with pixels' centres half a pixel further on.
        height, width = self.size
        shares = (points + 0.5) / points.new_tensor([width, height])
        found: Tensor = self.pe_layer(shares.float())
        return found

    def dense(self, asked: Asked) -> Tensor:
        """What is added to the embedding: (Q, dim, h, w) for masks, else (1, dim, 1, 1)."""
        if asked.masks is None:
            return self.no_mask_embed.weight[:, :, None, None]
        found: Tensor = self.mask_downscaling(asked.masks)
        return found


class Attention(nn.Module):
    """Attention whose inner width may be smaller: dim -> inner -> dim, in `HEADS` heads."""

    def __init__(self, dim: int, inner: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(dim, inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.out_proj = nn.Linear(inner, dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, N, dim), (B, M, dim), (B, M, dim) -> (B, N, dim)."""
        parts = (self.q_proj(q), self.k_proj(k), self.v_proj(v))
        heads = [part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in parts]
        found = F.scaled_dot_product_attention(*heads)
        joined: Tensor = self.out_proj(found.transpose(1, 2).flatten(2))
        return joined


class Mlp(nn.Module):
    """dim -> hidden -> dim."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(dim, hidden)
        self.lin2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> the same."""
        found: Tensor = self.lin2(F.relu(self.lin1(x)))
        return found


class Layer(nn.Module):
    """Tokens look at each other, then at the picture; the picture looks at them. first: tokens are
    still their own position codes.
    """

    def __init__(self, dim: int, hidden: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn_token_to_image = Attention(dim, dim // 2)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden)
        self.norm3 = nn.LayerNorm(dim)
        self.norm4 = nn.LayerNorm(dim)
        self.cross_attn_image_to_token = Attention(dim, dim // 2)

    def meet(self, tokens: Tensor, codes: Tensor) -> Tensor:
        """Tokens (Q, T, dim) with their position codes -> after they looked at each other."""
        if self.first:
            met: Tensor = self.norm1(self.self_attn(tokens, tokens, tokens))
            return met
        coded = tokens + codes
        met = self.norm1(tokens + self.self_attn(coded, coded, tokens))
        return met

    def think(self, tokens: Tensor) -> Tensor:
        """Tokens (Q, T, dim) -> after the hidden layer."""
        found: Tensor = self.norm3(tokens + self.mlp(tokens))
        return found

    def forward(
        self, tokens: Tensor, codes: Tensor, picture: Tensor, places: Tensor
    ) -> tuple[Tensor, Tensor]:
        """tokens, codes (Q, T, dim), picture (Q, N, dim), places (N, dim) -> tokens, picture."""
        tokens = self.meet(tokens, codes)
        look = self.cross_attn_token_to_image(tokens + codes, picture + places, picture)
        tokens = self.think(self.norm2(tokens + look))
        look = self.cross_attn_image_to_token(picture + places, tokens + codes, tokens)
        return tokens, self.norm4(picture + look)


class Transformer(nn.Module):
    """Two layers and a last look at the picture."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(dim, hidden, first=i == 0) for i in range(2))
        self.final_attn_token_to_image = Attention(dim, dim // 2)
        self.norm_final_attn = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, picture: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """tokens (Q, T, dim), picture (Q, N, dim), places (N, dim) -> tokens, picture."""
        codes = tokens
        for layer in self.layers:
            tokens, picture = layer(tokens, codes, picture, places)
        look = self.final_attn_token_to_image(tokens + codes, picture + places, picture)
        return self.norm_final_attn(tokens + look), picture


class Head(nn.Module):
    """Three linear layers with ReLU between them."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [nn.Linear(dim, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, out)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., out)."""
        first, second, last = self.layers
        found: Tensor = last(F.relu(second(F.relu(first(x)))))
        return found


class MaskDecoder(nn.Module):
    """dim: width of a token; hidden: of the layers between; judge: of the layers that judge."""

    def __init__(self, dim: int, hidden: int, judge: int) -> None:
        super().__init__()
        self.transformer = Transformer(dim, hidden)
        self.iou_token = nn.Embedding(1, dim)
        self.mask_tokens = nn.Embedding(_MASKS, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(dim, dim // 4, 2, 2), ChannelNorm(dim // 4), nn.GELU(),
            nn.ConvTranspose2d(dim // 4, dim // 8, 2, 2), nn.GELU(),
        )  # fmt: skip
        self.output_hypernetworks_mlps = nn.ModuleList(
            Head(dim, dim, dim // 8) for _ in range(_MASKS)
        )
        self.iou_prediction_head = Head(dim, judge, _MASKS)

    def all_tokens(self, prompts: Tensor) -> Tensor:
        """(Q, T, dim) of the prompts -> (Q, 5 + T, dim), the decoder's own before them."""
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        return torch.cat([own.expand(len(prompts), -1, -1), prompts], dim=1)

    def weights(self, tokens: Tensor) -> Tensor:
        """(Q, T, dim) after the transformer -> (Q, 4, dim / 8), what of the up-scaled picture each
        mask is made of.
        """
        heads = self.output_hypernetworks_mlps
        return torch.stack([head(tokens[:, 1 + i]) for i, head in enumerate(heads)], dim=1)

    def forward(self, embedding: Tensor, places: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """embedding (Q, dim, h, w) or (1, dim, h, w), places (h w, dim), prompts (Q, T, dim) ->
        mask logits (Q, 4, 4 h, 4 w) and predicted IoU (Q, 4); the first of the four answers a
        prompt that is clear, the others one that could mean several things.
        """
        tokens = self.all_tokens(prompts)
        picture = embedding.flatten(2).transpose(1, 2).expand(len(tokens), -1, -1)
        tokens, picture = self.transformer(tokens, picture, places)
        maps = picture.transpose(1, 2).unflatten(2, embedding.shape[2:])
        upscaled = self.output_upscaling(maps)
        masks = torch.einsum("qmc,qchw->qmhw", self.weights(tokens), upscaled)
        return masks, self.iou_prediction_head(tokens[:, 0])
