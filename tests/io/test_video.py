"""Videos: what is written is read again, frame by frame, upright, whole or not."""

import http.server
import threading
import time
from functools import partial

import numpy as np
import pytest

from sigak.io.video import Video, Writer
from sigak.structures import SigakError

av = pytest.importorskip("av")

COLORS = [(230, 40, 40), (40, 230, 40), (40, 40, 230), (230, 230, 40)]


def color_of(index):
    return np.array(COLORS[index % 4])


def write(path, count=12, rate=10.0, size=(48, 64), seconds=None):
    with Writer(path, rate) as writer:
        for i in range(count):
            pixels = np.full((*size, 3), color_of(i), np.uint8)
            writer.write(pixels, i / rate if seconds is None else seconds[i])
    return path


def mux(path, count=12, codec="mpeg4", rotation=0, options=None):
    """A video made with PyAV alone, its upper half in the frame's colour, its lower half black."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        for i in range(count):
            pixels = np.zeros((48, 64, 3), np.uint8)
            pixels[:24] = color_of(i)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def close_to(pixels, color):
    return np.abs(pixels.reshape(-1, 3).astype(int) - color).max() < 25


def test_what_is_written_is_read(tmp_path):
    video = Video(write(tmp_path / "a b#1.mp4", size=(49, 63)))
    assert (video.rate, video.count, video.live) == (pytest.approx(10, rel=0.1), 12, False)
    frames = list(video.frames())
    assert [f.index for f in frames] == list(range(12))
    assert [f.seconds for f in frames] == pytest.approx([i / 10 for i in range(12)], abs=2e-3)
    assert {f.pixels.shape for f in frames} == {(48, 62, 3)}  # even sides
    assert all(close_to(f.pixels, color_of(f.index)) for f in frames)


def test_every_so_many_and_uneven_times(tmp_path):
    path = write(tmp_path / "a.mp4", 7, seconds=[0, 0.1, 0.5, 0.55, 2, 2.0, 3])
    assert [f.index for f in Video(path).frames(every=3)] == [0, 3, 6]
    times = [f.seconds for f in Video(path).frames()]
    assert times == pytest.approx([0, 0.1, 0.5, 0.55, 2, 2.001, 3], abs=2e-3)
    with pytest.raises(SigakError, match="--every must be at least 1, received 0"):
        Video(path).frames(every=0)


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".mov", ".ts"])
def test_containers(suffix, tmp_path):
    frames = list(Video(mux(tmp_path / f"a{suffix}")).frames())
    assert len(frames) == 12
    assert close_to(frames[2].pixels[4:20], color_of(2))


@pytest.mark.skipif(
    not hasattr(av.video.stream.VideoStream, "set_display_rotation"),
    reason="this PyAV writes no rotation",
)
@pytest.mark.parametrize("turn", [90, 180, -90])
def test_phones_turn_their_videos(turn, tmp_path):
    """Counter-clockwise by `turn` the coloured upper half is on the left, below, on the right."""
    pixels = next(Video(mux(tmp_path / "a.mp4", rotation=turn)).frames()).pixels
    assert pixels.shape == ((48, 64, 3) if turn == 180 else (64, 48, 3))
    half = {90: pixels[:, 2:22], 180: pixels[26:], -90: pixels[:, 26:46]}[turn]
    assert close_to(half, color_of(0))


def test_damage_is_named_and_left_out(tmp_path):
    path = mux(tmp_path / "a.avi", 40)
    data = bytearray(path.read_bytes())
    begin = data.find(b"00dc", len(data) // 2) + 8  # the data of a frame in the middle
    data[begin : begin + 12] = b"\xff" * 12
    path.write_bytes(data)
    told = []
    frames = list(Video(path).frames(report=told.append))
    assert len(told) == 1
    assert "frame " in told[0]
    assert "damaged" in told[0]
    assert 30 <= len(frames) < 40
    with pytest.raises(SigakError, match=r"a\.avi: frame \d+ is damaged"):
        list(Video(path).frames())


def test_a_video_cut_short_gives_what_it_has(tmp_path):
    path = mux(tmp_path / "a.mkv", 40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    told = []
    assert 5 < len(list(Video(path).frames(report=told.append))) < 35


def test_what_is_no_video_is_refused(tmp_path):
    with pytest.raises(SigakError, match=r"there is no video .*none\.mp4"):
        Video(tmp_path / "none.mp4")
    (tmp_path / "text.mp4").write_text("hello " * 100)
    with pytest.raises(SigakError, match=r"text\.mp4 cannot be opened as a video"):
        Video(tmp_path / "text.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(SigakError, match=r"sound\.mp4 has no video"):
        Video(tmp_path / "sound.mp4")


def test_a_password_is_not_shown():
    with pytest.raises(SigakError, match="opened as a video") as caught:
        Video("rtsp://someone:secret@127.0.0.1:9/door")
    assert "secret" not in str(caught.value)
    assert "rtsp://127.0.0.1:9/door" in str(caught.value)


def test_a_camera_that_is_not_there():
    with pytest.raises(SigakError, match="no camera 63 can be opened"):
        Video("63")


def test_the_file_is_whole_when_work_is_interrupted(tmp_path):
    def interrupted():
        with Writer(tmp_path / "a.mp4", 10) as writer:
            for i in range(5):
                writer.write(np.full((48, 64, 3), color_of(i), np.uint8), i / 10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(list(Video(tmp_path / "a.mp4").frames())) == 5


def test_frames_of_another_size_are_fitted(tmp_path):
    with Writer(tmp_path / "a.mp4", 10) as writer:
        for i, size in enumerate([(48, 64), (96, 128), (48, 64)]):
            writer.write(np.full((*size, 3), color_of(i), np.uint8), i / 10)
    frames = list(Video(tmp_path / "a.mp4").frames())
    assert [f.pixels.shape for f in frames] == [(48, 64, 3)] * 3
    assert close_to(frames[1].pixels, color_of(1))


def test_nothing_is_written_without_a_frame(tmp_path):
    with Writer(tmp_path / "a.mp4", 10):
        pass
    assert not (tmp_path / "a.mp4").exists()


@pytest.fixture
def server(tmp_path):
    """A server on this machine that hands out the files of tmp_path: its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))
    ) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{made.server_port}"
        made.shutdown()
        thread.join()


def test_a_file_on_a_server_is_read_whole(server, tmp_path):
    write(tmp_path / "a.mp4")
    video = Video(f"{server}/a.mp4")
    assert not video.live
    assert len(list(video.frames())) == 12
    with pytest.raises(SigakError, match="cannot be opened as a video"):
        Video(f"{server}/none.mp4")


def test_of_a_stream_the_newest_frame_comes(server, tmp_path):
    """A raw stream has no length, which is what is live of it here."""
    mux(tmp_path / "a.h264", 60, codec="libx264")
    video = Video(f"{server}/a.h264")
    assert video.live
    frames = video.frames()
    seen = [next(frames).index]
    time.sleep(0.5)  # longer than the reader needs for all the rest
    seen += [f.index for f in frames]
    assert seen[-1] == 59
    assert len(seen) < 10
    assert seen == sorted(set(seen))


def test_a_stream_may_be_left(server, tmp_path):
    mux(tmp_path / "a.h264", 60, codec="libx264")
    frames = Video(f"{server}/a.h264").frames()
    next(frames)
    frames.close()
    assert not [t for t in threading.enumerate() if t.name == "sigak-video"]
