"""Downloads from a real server on this machine that cuts, refuses or knows no ranges, as told."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sigak.io import download as room
from sigak.io.download import cache_folder, download
from sigak.structures import SigakError

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        if server.statuses:
            status = server.statuses.pop(0)
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", server.location)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        asked = self.headers.get("Range")
        if asked and server.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if start and start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(server.announced or len(CONTENT) - start))
        self.end_headers()
        self.send_body(start)

    def send_body(self, start):
        end = self.server.cuts.pop(0) if self.server.cuts else len(CONTENT)
        for at in range(start, end, 65536):
            if self.server.slow.is_set():
                time.sleep(0.05)
            try:
                self.wfile.write(CONTENT[at : min(at + 65536, end)])
            except OSError:
                return  # the client was killed

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    """Told `cuts` (where bodies end), `statuses`, `ranges`, `announced`; it tells `requests`."""
    monkeypatch.setattr(room, "WAITS", (0.01, 0.01, 0.01))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.requests, http.cuts, http.statuses, http.ranges, http.announced = [], [], [], True, None
    http.slow = threading.Event()
    http.url = f"http://127.0.0.1:{http.server_port}/file.bin"
    thread = threading.Thread(
        target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    yield http
    http.shutdown()
    http.server_close()
    thread.join()


def left_over(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "checksum", [{}, {"sha256": SHA256}, {"sha256": SHA256[:8].upper()}, {"md5": MD5}]
)
def test_a_whole_file(server, tmp_path, checksum):
    path = download(server.url, tmp_path / "new" / "file.bin", **checksum)
    assert path.read_bytes() == CONTENT
    assert left_over(path.parent) == ["file.bin"]
    assert download(server.url, path, **checksum) == path
    assert len(server.requests) == 1


def test_a_cut_connection_is_resumed(server, tmp_path):
    server.cuts = [300_000, 700_001]
    path = download(server.url, tmp_path / "f", sha256=SHA256)
    assert path.read_bytes() == CONTENT
    assert [asked for _, asked in server.requests] == [None, "bytes=300000-", "bytes=700001-"]


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.ranges = False
    server.cuts = [300_000]
    assert download(server.url, tmp_path / "f", sha256=SHA256).read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_a_part_of_an_earlier_run_is_continued(server, tmp_path):
    (tmp_path / "f.part").write_bytes(CONTENT[:123_456])
    assert download(server.url, tmp_path / "f", md5=MD5).read_bytes() == CONTENT
    assert server.requests == [("/file.bin", "bytes=123456-")]


def test_a_whole_part_of_an_earlier_run_is_used(server, tmp_path):
    (tmp_path / "f.part").write_bytes(CONTENT)
    assert download(server.url, tmp_path / "f", md5=MD5).read_bytes() == CONTENT
    assert left_over(tmp_path) == ["f"]


def test_a_part_that_is_too_long_is_dropped(server, tmp_path):
    (tmp_path / "f.part").write_bytes(CONTENT + b"more")
    assert download(server.url, tmp_path / "f", md5=MD5).read_bytes() == CONTENT


def test_a_part_nothing_can_vouch_for_is_dropped(server, tmp_path):
    (tmp_path / "f.part").write_bytes(b"another file")
    assert download(server.url, tmp_path / "f").read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(SigakError, match=f"expected md5 {'0' * 32}, received {MD5}"):
        download(server.url, tmp_path / "f", md5="0" * 32)
    assert not (tmp_path / "f").exists()
    assert not (tmp_path / "f.part").exists()


def test_a_wrong_part_is_found_out(server, tmp_path):
    (tmp_path / "f.part").write_bytes(b"x" * 1000)
    with pytest.raises(SigakError, match="expected sha256"):
        download(server.url, tmp_path / "f", sha256=SHA256)
    assert download(server.url, tmp_path / "f", sha256=SHA256).read_bytes() == CONTENT


def test_a_damaged_file_in_place_is_fetched_again(server, tmp_path):
    (tmp_path / "f").write_bytes(b"damaged")
    assert download(server.url, tmp_path / "f", md5=MD5).read_bytes() == CONTENT


def test_a_missing_file_is_not_asked_for_twice(server, tmp_path):
    server.statuses = [404]
    with pytest.raises(SigakError, match=r"answered 404 Not Found; fetch the file by hand.*f$"):
        download(server.url, tmp_path / "f")
    assert len(server.requests) == 1


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.statuses = [503, 429]
    assert download(server.url, tmp_path / "f", md5=MD5).read_bytes() == CONTENT


def test_a_server_that_stays_broken_is_given_up(server, tmp_path):
    server.statuses = [500] * 9
    with pytest.raises(
        SigakError, match="answered 500 Internal Server Error; check the connection"
    ):
        download(server.url, tmp_path / "f")
    assert len(server.requests) == 4


def test_nobody_listens(server, tmp_path):
    server.server_close()
    with pytest.raises(SigakError, match=r"cannot fetch .* check the connection and the proxy"):
        download(server.url, tmp_path / "f")


def test_a_redirection_is_followed(server, tmp_path):
    server.statuses, server.location = [302], "/elsewhere"
    assert download(server.url, tmp_path / "f", md5=MD5).read_bytes() == CONTENT
    assert server.requests[1][0] == "/elsewhere"


@pytest.mark.parametrize("scheme", ["file:///etc/hostname", "ftp://127.0.0.1/x"])
def test_a_redirection_to_a_local_file_is_not_followed(server, tmp_path, scheme):
    server.statuses, server.location = [302] * 9, scheme
    with pytest.raises(SigakError):
        download(server.url, tmp_path / "f")
    assert not (tmp_path / "f").exists()


def test_a_full_disk(server, tmp_path):
    server.announced = 10**17
    with pytest.raises(SigakError, match=r"no space on disk .*MB are needed"):
        download(server.url, tmp_path / "f")
    assert not (tmp_path / "f").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_fills_up(server, tmp_path):
    (tmp_path / "f.part").symlink_to("/dev/full")
    with pytest.raises(SigakError, match=r"no space on disk for .*f .No space left"):
        download(server.url, tmp_path / "f", md5=MD5)


def test_a_folder_that_cannot_be_made(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SigakError, match=r"cannot write .*SIGAK_CACHE"):
        download(server.url, tmp_path / "file" / "f")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "photo.jpg"])
def test_other_schemes_are_refused(url, tmp_path):
    with pytest.raises(SigakError, match="begins with https:// or http://"):
        download(url, tmp_path / "f")


def test_a_short_prefix_is_no_checksum(tmp_path):
    with pytest.raises(SigakError, match="at least 8 hex digits"):
        download("https://127.0.0.1/f", tmp_path / "f", sha256="abc")


def test_a_killed_download_is_continued(server, tmp_path):
    server.slow.set()
    path = tmp_path / "f"
    code = (
        "import sys; from sigak.io.download import download;"
        "download(*sys.argv[1:3], md5=sys.argv[3])"
    )
    process = subprocess.Popen([sys.executable, "-c", code, server.url, str(path), MD5])
    part = tmp_path / "f.part"
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
    process.wait()
    received = part.stat().st_size
    assert 0 < received < len(CONTENT)
    assert not path.exists()
    server.slow.clear()
    assert download(server.url, path, md5=MD5).read_bytes() == CONTENT
    assert server.requests[-1] == ("/file.bin", f"bytes={received}-")


def test_two_at_once_fetch_it_once(server, tmp_path):
    threads = [
        threading.Thread(target=download, args=(server.url, tmp_path / "f"), kwargs={"md5": MD5})
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_the_cache_has_a_place(tmp_path, monkeypatch):
    monkeypatch.setenv("SIGAK_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("SIGAK_CACHE")
    assert cache_folder().name == "sigak"
    assert cache_folder().is_absolute()
    if os.name == "posix" and sys.platform != "darwin":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert cache_folder() == tmp_path / "xdg" / "sigak"
