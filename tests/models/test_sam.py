"""Segment Anything beside its publisher's package, with the same randomly drawn weights."""

import numpy as np
import pytest
import torch
from torch import nn

from sigak import models
from sigak.errors import SigakError
from sigak.foreign import load_into
from sigak.io import weights as files
from sigak.models._entry import count_parameters
from sigak.models.sam import MODELS

NAMES = tuple(MODELS)


def tiny(name="sam-b", **changes):
    """The arguments of a small form."""
    return models.arguments(name, **models.entry(name).tiny | changes)


@pytest.fixture
def pair(sam_pair):
    return lambda **changes: sam_pair(tiny(**changes))


def drawn(built):
    """A network whose every parameter, also those that begin at 0 or 1, is drawn."""
    torch.manual_seed(0)
    network = MODELS["sam-b"].build(**built).eval()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network


def prompts(side, seed=0):
    """Prompts of every kind for three objects, as both networks take them."""
    torch.manual_seed(seed)
    points, labels = torch.rand(3, 2, 2) * side, torch.tensor([[1, 0], [1, 1], [0, 1]])
    corners = torch.rand(3, 2, 2).sort(1).values * side
    earlier = torch.randn(3, 1, side // 4, side // 4)
    whole = {"points": points, "labels": labels, "boxes": corners.flatten(1), "masks": earlier}
    kinds = (("points", "labels"), ("boxes",), ("masks",), ("points", "labels", "boxes", "masks"))
    return [{name: whole[name] for name in kind} for kind in kinds]


# ------------------------------------------------------------------ what it is


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_as_declared(name):
    row = MODELS[name]
    with torch.device("meta"):
        assert count_parameters(models.create(name)) == row.parameters


def test_the_counts_are_the_published_ones():
    counts = {name: row.parameters[1] for name, row in MODELS.items()}
    assert counts["sam-b"] == 93_735_472
    assert counts["sam-l"] == 312_342_832
    assert counts["sam-h"] == 641_090_608
    classifier = 320 * 1000 + 1000 + 2 * 320  # in the published file, and without use
    assert counts["mobile-sam"] + classifier == 10_130_092


@pytest.mark.parametrize("name", NAMES)
def test_every_form_answers(name, tmp_path):
    """Shapes; half precision; a checkpoint that holds everything; pictures that are not square."""
    built = tiny(name)
    torch.manual_seed(0)
    network = models.entry(name).build(**built).eval()
    images = torch.rand(2, 3, 64, 40)
    asked = network.asked(points=torch.rand(5, 1, 2) * 40)
    with torch.inference_mode():
        embedding = network(images)
        apart = torch.cat([network(image[None]) for image in images])
        masks, quality = network.answer(embedding[:1], asked)
        with torch.autocast("cpu", torch.bfloat16):
            assert network(images).isfinite().all()
    assert embedding.shape == (2, 32, 4, 4)
    assert masks.shape == (5, 4, 16, 16)
    assert quality.shape == (5, 4)
    torch.testing.assert_close(embedding, apart, atol=1e-5, rtol=1e-4)
    files.write(tmp_path / "x.safetensors", network.state_dict(), {"arguments": built})
    tensors, header = files.read(tmp_path / "x.safetensors")
    again = models.entry(name).build(**header["arguments"]).eval()
    again.load_state_dict(tensors, strict=True)
    with torch.inference_mode():
        assert torch.equal(again(images), embedding)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name):
    network = models.entry(name).build(**tiny(name))
    for parameter in network.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    whole = 0.0
    for kind in prompts(64):
        masks, quality = network.answer(network(torch.rand(1, 3, 64, 64)), network.asked(**kind))
        whole = whole + masks.square().mean() + quality.square().mean()
    whole.backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


def test_what_it_cannot_be_is_told():
    with pytest.raises(SigakError, match=r"square canvas of a multiple of 16 .* 64x80"):
        models.create("sam-b", size=(64, 80))
    network = models.entry("sam-b").build(**tiny())
    with pytest.raises(SigakError, match="at most 64x64, received 96x32"):
        network(torch.zeros(1, 3, 96, 32))


# ------------------------------------------------------------------ beside the publisher's


def test_embeddings_and_masks_agree(pair):
    network, theirs = pair(size=(96, 96), depth=3)
    images = torch.rand(1, 3, 96, 70)
    with torch.inference_mode():
        embedding = network(images)
        mean, std = theirs.pixel_mean / 255, theirs.pixel_std / 255
        padded = nn.functional.pad((images - mean) / std, (0, 26))
        expected = theirs.image_encoder(padded)
        torch.testing.assert_close(embedding, expected, atol=1e-5, rtol=1e-4)
        for kind in prompts(96):
            masks, quality = network.answer(embedding, network.asked(**kind))
            points = (kind["points"], kind["labels"]) if "points" in kind else None
            tokens = theirs.prompt_encoder(points, kind.get("boxes"), kind.get("masks"))
            places = theirs.prompt_encoder.get_dense_pe()
            wanted = theirs.mask_decoder.predict_masks(expected, places, *tokens)
            torch.testing.assert_close(masks, wanted[0], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(quality, wanted[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("whole", [(), (0,)])
def test_attention_in_parts_is_that_of_timm(whole, monkeypatch):
    """Also where the rows of an attention table are made a few at a time."""
    monkeypatch.setattr("sigak.models._sam_fast._SCORES", 100)
    network = drawn(tiny(size=(80, 80), whole=whole))
    images = torch.rand(2, 3, 80, 80)
    with torch.no_grad():
        quick = network(images)
    assert quick.requires_grad is False
    usual = network(images)  # with gradients: timm's own forward
    assert usual.requires_grad
    torch.testing.assert_close(quick, usual.detach(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["points", "boxes"])
def test_a_crowd_gets_the_answers_of_one(kind):
    network = drawn(tiny(size=(128, 128)))
    torch.manual_seed(1)
    places = torch.rand(9, 2, 2) * 128
    asked = network.asked(
        **({"points": places} if kind == "points" else {"boxes": places.flatten(1)})
    )
    with torch.inference_mode():
        embedding = torch.randn(1, 32, 8, 8)
        masks, quality = network.answer(embedding, asked)
        crowd = network.crowd(embedding)
        every = crowd.ask(network.prompt_encoder.tokens(asked))
        assert len(every) == 9
        for place, met in enumerate(every):
            torch.testing.assert_close(met.quality, quality[place], atol=1e-5, rtol=1e-4)
            chosen = torch.tensor([[2], [1, 3], [0, 1, 2, 3]][place % 3])
            made = crowd.masks(met, chosen)
            torch.testing.assert_close(made, masks[place, chosen], atol=1e-4, rtol=1e-4)


# ------------------------------------------------------------------ published files


def test_a_published_file_fits_both_ways(pair, tmp_path):
    network, theirs = pair()
    torch.save(theirs.state_dict(), tmp_path / "sam_vit_x.pth")
    fresh = MODELS["sam-b"].build(**tiny())
    assert load_into(fresh, MODELS["sam-b"], tmp_path / "sam_vit_x.pth") == []
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name


def test_a_file_of_another_form_is_refused(pair, tmp_path):
    _, theirs = pair()
    torch.save(theirs.state_dict(), tmp_path / "sam_vit_x.pth")
    other = MODELS["sam-b"].build(**tiny(depth=3))
    with pytest.raises(SigakError, match=r"do not fit the network: \d+ missing \(image_encoder"):
        load_into(other, MODELS["sam-b"], tmp_path / "sam_vit_x.pth")


def mobile_name(name):
    """What the published file of MobileSAM calls a tensor of ours."""
    if not name.startswith("image_encoder."):
        return name
    for ours, theirs in (
        ("patch_embed.conv1.", "patch_embed.seq.0."),
        ("patch_embed.conv2.", "patch_embed.seq.2."),
        (".conv.weight", ".c.weight"),
    ):
        name = name.replace(ours, theirs)
    if ".stages." in name:
        head, _, rest = name.partition(".stages.")
        stage, _, rest = rest.partition(".")
        name = f"{head}.layers.{int(stage) - rest.startswith('downsample.')}.{rest}"
    return name


def test_the_published_file_of_mobile_sam_fits(tmp_path):
    row = MODELS["mobile-sam"]
    network = row.build(**tiny("mobile-sam"))
    state = {mobile_name(name): value for name, value in network.state_dict().items()}
    for known in (
        "image_encoder.patch_embed.seq.2.bn.running_var",
        "image_encoder.layers.0.blocks.1.conv2.c.weight",
        "image_encoder.layers.2.downsample.conv3.bn.weight",
        "image_encoder.layers.3.blocks.0.attn.attention_biases",
        "image_encoder.neck.3.bias",
    ):
        assert known in state
    state |= {"image_encoder.head.weight": torch.zeros(5, 32)}
    torch.save(state, tmp_path / "mobile_sam.pt")
    fresh = row.build(**tiny("mobile-sam"))
    assert load_into(fresh, row, tmp_path / "mobile_sam.pt") == []
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name


@pytest.mark.slow
def test_the_whole_of_vit_b_agrees():
    from segment_anything import sam_model_registry

    theirs = sam_model_registry["vit_b"]().eval()
    torch.manual_seed(0)
    for parameter in theirs.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    network = models.create("sam-b").eval()
    load_state = MODELS["sam-b"].weights[0].convert(theirs.state_dict())
    network.load_state_dict(load_state, strict=True)
    images = torch.from_numpy(np.random.default_rng(0).random((1, 3, 1024, 683), np.float32))
    with torch.inference_mode():
        embedding = network(images)
        mean, std = theirs.pixel_mean / 255, theirs.pixel_std / 255
        expected = theirs.image_encoder(nn.functional.pad((images - mean) / std, (0, 341)))
        torch.testing.assert_close(embedding, expected, atol=1e-4, rtol=1e-4)
        asked = network.asked(points=torch.rand(2, 1, 2) * 600)
        met = network.crowd(embedding).ask(network.prompt_encoder.tokens(asked))
        tokens = theirs.prompt_encoder((asked.points, asked.labels), None, None)
        places = theirs.prompt_encoder.get_dense_pe()
        masks, quality = theirs.mask_decoder.predict_masks(expected, places, *tokens)
        crowd = network.crowd(embedding)
        for place, one in enumerate(met):
            torch.testing.assert_close(one.quality, quality[place], atol=1e-4, rtol=1e-4)
            made = crowd.masks(one, torch.arange(4))
            torch.testing.assert_close(made, masks[place], atol=1e-4, rtol=1e-4)
