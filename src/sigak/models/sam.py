"""Segment Anything: a picture is embedded once, and then answers any number of prompts.

Kirillov et al. 2023, https://arxiv.org/abs/2304.02643; MobileSAM, whose encoder was distilled from
the largest one: Zhang et al. 2023, https://arxiv.org/abs/2306.14289. The encoders are timm's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sigak.layers.normalize import Normalize
from sigak.models import _sam_fast as fast
from sigak.models._entry import Entry, Input, Weights
from sigak.models._sam_decoder import HEADS, Asked, ChannelNorm, MaskDecoder, PromptEncoder
from sigak.structures import SigakError

__all__ = ["MODELS", "Asked", "Sam", "TinyEncoder", "published"]

_PATCH = 16  # pixels of the canvas a place of the embedding stands for
_TINY = "tiny"


class Sam(nn.Module):
    """encoder: "vit" of width, depth, heads and window, whose layers `whole` look at all of the
    picture instead of at windows; or "tiny", of `widths` (four stages). dim: width of the embedding
    and of the decoder's tokens; hidden: of its hidden layers.

    The canvas is square. A picture is smaller on one side at most, at the upper left; what is
    missing is zero after normalisation, as in training. Masks have a fourth of the canvas's sides.
    """

    head = ("prompt_encoder", "mask_decoder")
    stride = 0  # the canvas is built in

    def __init__(
        self,
        *,
        classes: int,
        channels: int,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        encoder: str = "vit",
        dim: int = 256,
        hidden: int = 2048,
        **shape: Any,
    ) -> None:
        super().__init__()
        if channels != 3 or size[0] != size[1] or size[0] % _PATCH or dim % (2 * HEADS):
            raise SigakError(
                "Segment Anything takes colour pictures on a square canvas of a multiple of "
                f"{_PATCH} pixels, and a width of a multiple of {2 * HEADS}; received {channels} "
                f"channels, {size[0]}x{size[1]} and {dim}"
            )
        self.size = (size[0], size[1])
        grid = (size[0] // _PATCH, size[1] // _PATCH)
        self.normalize = Normalize(mean, std)
        build: Callable[..., nn.Module] = _tiny_vit if encoder == _TINY else _vit
        self.image_encoder = build(size=self.size, dim=dim, **shape)
        self.prompt_encoder = PromptEncoder(dim, self.size, grid)
        self.mask_decoder = MaskDecoder(dim, hidden, dim)

    def forward(
        self, images: Tensor, lesson: Callable[[Sam, Tensor], dict[str, Tensor]] | None = None
    ) -> Any:
        """Images (B, 3, H, W) in [0, 1], H and W up to the canvas -> embedding (B, dim, h, w).

        lesson: called with the network and the embedding, gives the losses that are returned
        instead; all in one call, because processes that train together exchange gradients of what
        one call computed.
        """
        embedding = self.embed(images)
        return embedding if lesson is None else lesson(self, embedding)

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> (B, dim, h, w)."""
        if images.shape[2] > self.size[0] or images.shape[3] > self.size[1]:
            raise SigakError(
                f"expected pictures of at most {self.size[0]}x{self.size[1]}, received "
                f"{images.shape[2]}x{images.shape[3]}"
            )
        missing = (0, self.size[1] - images.shape[3], 0, self.size[0] - images.shape[2])
        images = F.pad(self.normalize(images), missing)
        if isinstance(self.image_encoder, TinyEncoder):
            return self.image_encoder(images)  # type: ignore[no-any-return]
        return fast.embed(self.image_encoder, images)

    def answer(self, embedding: Tensor, asked: Asked) -> tuple[Tensor, Tensor]:
        """embedding (1, dim, h, w) of one picture and prompts for Q masks -> mask logits
        (Q, 4, 4 h, 4 w) and predicted IoU (Q, 4): the first of a prompt that is clear, the other
        three of one that could mean several things.
        """
        encoder = self.prompt_encoder
        masks, quality = self.mask_decoder(
            embedding + encoder.dense(asked), encoder.places(), encoder.tokens(asked)
        )
        return masks, quality

    @staticmethod
    def asked(**prompts: Tensor) -> Asked:
        """The fields of `Asked`, on the canvas; points without labels are on their objects."""
        if "points" in prompts and "labels" not in prompts:
            shape, device = prompts["points"].shape[:2], prompts["points"].device
            prompts["labels"] = torch.ones(shape, dtype=torch.int64, device=device)
        return Asked(**prompts)

    def crowd(self, embedding: Tensor) -> fast.Crowd:
        """What answers very many prompts without earlier masks about one picture, embedding
        (1, dim, h, w): the same answers at a fraction of the work.
        """
        encoder = self.prompt_encoder
        picture = (embedding + encoder.dense(Asked())).flatten(2)[0].T
        return fast.Crowd(self.mask_decoder, picture, encoder.places())


# ------------------------------------------------------------------ encoders


def _vit(
    *,
    size: tuple[int, int],
    dim: int,
    width: int,
    depth: int,
    heads: int,
    whole: Sequence[int],
    window: int = 14,
) -> nn.Module:
    from timm.models.vision_transformer_sam import VisionTransformerSAM

    return VisionTransformerSAM(  # type: ignore[no-any-return]
        img_size=size[0],
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        global_attn_indexes=tuple(whole),
        window_size=window,
        use_rel_pos=True,
        neck_chans=dim,
        num_classes=0,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )


class TinyEncoder(nn.Module):
    """TinyViT whose last stage keeps the resolution of the one before, and SAM's neck behind it."""

    def __init__(self, widths: Sequence[int], dim: int) -> None:
        from timm.models.tiny_vit import TinyVit

        super().__init__()
        net = TinyVit(
            num_classes=0,
            embed_dims=tuple(widths),
            num_heads=tuple(max(1, width // 32) for width in widths),
            window_sizes=(7, 7, 14, 7),
            drop_path_rate=0.0,
        )
        net.stages[3].downsample.conv2.conv.stride = (1, 1)
        self.patch_embed, self.stages = net.patch_embed, net.stages
        self.neck = nn.Sequential(
            nn.Conv2d(widths[-1], dim, 1, bias=False), ChannelNorm(dim),
            nn.Conv2d(dim, dim, 3, padding=1, bias=False), ChannelNorm(dim),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, dim, H / 16, W / 16)."""
        found: Tensor = self.neck(self.stages(self.patch_embed(images)))
        return found


def _tiny_vit(*, size: tuple[int, int], dim: int, widths: Sequence[int]) -> nn.Module:
    return TinyEncoder(widths, dim)


# ------------------------------------------------------------------ names


def _convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published names -> ours: timm calls the encoder's hidden layers otherwise."""
    return {_renamed(name, "mlp.lin", "mlp.fc"): value for name, value in state.items()}


def published(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names -> the published ones, of the networks with a plain ViT."""
    return {_renamed(name, "mlp.fc", "mlp.lin"): value for name, value in state.items()}


def _renamed(name: str, old: str, new: str) -> str:
    return name.replace(old, new) if name.startswith("image_encoder.") else name


_SPARE = ("image_encoder.norm_head.", "image_encoder.head.")  # of a classifier that is not used
_TINY_NAMES = (
    ("patch_embed.seq.0.", "patch_embed.conv1."),
    ("patch_embed.seq.2.", "patch_embed.conv2."),
    (".c.weight", ".conv.weight"),
)


def _convert_mobile(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """MobileSAM's names -> ours; there a stage ends with what begins the next one in timm."""
    found = {}
    for name, value in state.items():
        if name.startswith(_SPARE) or name.endswith("attention_bias_idxs"):
            continue
        if name.startswith("image_encoder."):
            for old, new in _TINY_NAMES:
                name = name.replace(old, new)
            head, _, rest = name.partition("image_encoder.layers.")
            if rest:
                stage, _, rest = rest.partition(".")
                number = int(stage) + rest.startswith("downsample.")
                name = f"{head}image_encoder.stages.{number}.{rest}"
        found[name] = value
    return found


# ------------------------------------------------------------------ table


def _weights(url: str, sha256: str, convert: Any = _convert) -> tuple[Weights, ...]:
    return (Weights("sa-1b", url, sha256, "Apache-2.0", "SA-1B", 1, convert=convert),)


_PUBLISHED = "https://dl.fbaipublicfiles.com/segment_anything/"
_ROW = partial(
    Entry,
    build=Sam,
    task="prompt",
    input=Input(
        (1024, 1024), "rgb", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "longest", "antialias"
    ),
    classes=1,
    names=("object",),
    paper="https://arxiv.org/abs/2304.02643",
    tiny={
        "size": (64, 64), "dim": 32, "hidden": 64, "width": 32, "depth": 2, "heads": 2,
        "whole": (1,), "window": 3,
    },
    recipe={
        "lr": 1e-4, "weight_decay": 0.1, "batch": 4, "epochs": 5, "warmup": 0.2, "clip": 1.0,
        "augment": "flip=h",
    },
)  # fmt: skip
MODELS = {
    "sam-b": _ROW(
        args={"width": 768, "depth": 12, "heads": 12, "whole": (2, 5, 8, 11)},
        parameters=(93_735_472, 93_735_472),
        weights=_weights(
            f"{_PUBLISHED}sam_vit_b_01ec64.pth",
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
    ),
    "sam-l": _ROW(
        args={"width": 1024, "depth": 24, "heads": 16, "whole": (5, 11, 17, 23)},
        parameters=(312_342_832, 312_342_832),
        weights=_weights(
            f"{_PUBLISHED}sam_vit_l_0b3195.pth",
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
    ),
    "sam-h": _ROW(
        args={"width": 1280, "depth": 32, "heads": 16, "whole": (7, 15, 23, 31)},
        parameters=(641_090_608, 641_090_608),
        weights=_weights(
            f"{_PUBLISHED}sam_vit_h_4b8939.pth",
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
    ),
    "sam-nano": _ROW(
        input=Input(
            (128, 128), "rgb", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "longest", "antialias"
        ),
        args={
            "dim": 64, "hidden": 128, "width": 96, "depth": 3, "heads": 3, "whole": (2,),
            "window": 4,
        },
        parameters=(620_680, 620_680),
        note="not published; for trials, since it learns in minutes on one core",
        recipe={
            "lr": 2e-3, "weight_decay": 0.01, "batch": 4, "epochs": 20, "warmup": 1.0, "clip": 1.0,
            "augment": "flip=h",
        },
    ),
    "mobile-sam": _ROW(
        args={"encoder": _TINY, "widths": (64, 128, 160, 320)},
        parameters=(9_818_308, 9_808_452),
        note="published as 10,130,092 with a classifier of 321,640 that is not used",
        weights=_weights(
            "https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
            "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
            _convert_mobile,
        ),
        tiny={
            "size": (64, 64), "dim": 32, "hidden": 64, "widths": (16, 32, 32, 32),
        },
        paper="https://arxiv.org/abs/2306.14289",
        skip={"export": "tracing takes the sides of its windows for numbers that may change"},
    ),
}  # fmt: skip
