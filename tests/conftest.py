"""What every test may use, and what none may do: reach the network or leave a trace in torch."""

import ipaddress
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import sigak
from sigak.cli import main

THREADS = min(2, torch.get_num_threads())


@pytest.fixture(scope="session", autouse=True)
def _few_threads():
    torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True)
def _clean(monkeypatch, tmp_path_factory):
    """No network, a cache of its own, and torch's generator and threads as they were."""
    monkeypatch.setattr(socket.socket, "connect", _loopback_only(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", _loopback_only(socket.socket.connect_ex))
    monkeypatch.setenv("SIGAK_CACHE", str(tmp_path_factory.getbasetemp() / "empty-cache"))
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    yield
    torch.random.set_rng_state(state)
    torch.set_num_threads(threads)


def _loopback_only(connect):
    def guarded(self, address):
        host = address[0] if isinstance(address, tuple) else ""  # local sockets have a path
        if host not in ("", "localhost") and not ipaddress.ip_address(host).is_loopback:
            pytest.fail(f"a test tried to reach {address} over the network")
        return connect(self, address)

    return guarded


@pytest.fixture
def folder(tmp_path):
    """Write class folders of pictures: folder(name, classes, count, ...) -> their root.

    A picture is noise around a colour of its class, so that a network can tell classes apart.
    """

    def write(
        name="pets", classes=("cat", "dog"), count=10, size=(16, 16), suffix=".png", mode="RGB"
    ):
        for label, class_name in enumerate(classes):
            place = tmp_path / name / class_name
            place.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                _picture(size, label, 1000 * label + i, mode).save(place / f"{i}{suffix}")
        return tmp_path / name

    return write


def _picture(size, label, seed, mode):
    bands = len(Image.new(mode, (1, 1)).getbands())
    random = np.random.default_rng(seed)
    middle = np.random.default_rng(label).integers(64, 192, bands)
    pixels = np.clip(middle + random.normal(0, 30, (*size, bands)), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels.squeeze() if bands == 1 else pixels, mode if bands > 1 else None)


@pytest.fixture
def sigak_cli(monkeypatch, tmp_path, capsys):
    """Run one command in this process, in tmp_path: (code, out, err)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        capsys.readouterr()
        try:
            code = main([str(word) for word in arguments])
        except SystemExit as stopped:  # argparse ends the process
            code = stopped.code
        said = capsys.readouterr()
        return SimpleNamespace(code=code, out=said.out, err=said.err)

    return run


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory):
    """A finished run of a small network on the digits."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    return sigak.train("mlp", "digits", epochs=2, size=8, lr=0.01, out=str(out), quiet=True)


@pytest.fixture
def run_environment(tmp_path):
    """The environment of a subprocess: one thread, its own cache, no colours."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("SIGAK_", "MASTER_", "RANK"))}
    return keep | {"OMP_NUM_THREADS": "1", "SIGAK_CACHE": str(tmp_path / "cache"), "NO_COLOR": "1"}


@pytest.fixture
def in_two_processes(tmp_path, run_environment):
    """Two processes that train together: in_two_processes(*words of the command) -> what they
    printed, once both have succeeded. They run in tmp_path.
    """

    def run(*words):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2",
            "--master_addr=127.0.0.1", f"--master_port={port}", *words,
        ]  # fmt: skip
        done = subprocess.run(
            command, cwd=tmp_path, env=run_environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def sam_of_publisher():
    """of(network, arguments): the publisher's network with the weights of ours, a plain ViT."""
    from functools import partial

    from segment_anything import modeling

    from sigak.models.sam import published

    def of(network, built):
        dim, side = built["dim"], built["size"][0]
        encoder = modeling.ImageEncoderViT(
            img_size=side, depth=built["depth"], embed_dim=built["width"],
            num_heads=built["heads"], out_chans=dim, use_rel_pos=True,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            window_size=built.get("window", 14), global_attn_indexes=built["whole"],
        )  # fmt: skip
        decoder = modeling.MaskDecoder(
            transformer_dim=dim,
            transformer=modeling.TwoWayTransformer(2, dim, 8, built["hidden"]),
            iou_head_hidden_dim=dim,
        )
        prompts = modeling.PromptEncoder(dim, (side // 16,) * 2, (side, side), 16)
        theirs = modeling.Sam(encoder, prompts, decoder).eval()
        theirs.load_state_dict(published(network.state_dict()), strict=True)
        return theirs

    return of


@pytest.fixture
def sam_pair(sam_of_publisher):
    """(network, the publisher's with the same weights) of one form of Segment Anything, all
    parameters drawn: pair(arguments, seed, spread) .
    """
    from sigak.models.sam import MODELS

    def pair(built, seed=0, spread=0.1):
        torch.manual_seed(seed)
        network = MODELS["sam-b"].build(**built).eval()
        for parameter in network.parameters():
            parameter.data += spread * torch.randn_like(parameter)
        return network, sam_of_publisher(network, built)

    return pair
