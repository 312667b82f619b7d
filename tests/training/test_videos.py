"""Frames of real videos, written here with PyAV."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from training.errors import InputError
from training.videos import is_video, sample_video

CODECS = {".mp4": "mpeg4", ".avi": "mpeg4", ".mov": "mpeg4", ".mkv": "mpeg4", ".webm": "libvpx"}


def write_video(
    path: Path, *, seconds: float = 3, rate: int = 10, colour: tuple[int, int, int] = (200, 0, 0), left: int = 0
) -> Path:
    """A video whose picture is `colour`, lighter in the 32 columns from `left`, with a green that grows by 10 a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS[path.suffix.lower()], rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = Fraction(1, rate)
        for number in range(round(seconds * rate)):
            pixels = np.full((48, 64, 3), colour, np.uint8)
            pixels[:, :, 1] = number * 10 // rate
            lighter = slice(left, left + 32)
            pixels[:, lighter] = np.minimum(pixels[:, lighter].astype(int) + 50, 255)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("suffix", sorted(CODECS))
def test_a_video_gives_one_frame_for_each_second(tmp_path: Path, suffix: str) -> None:
    frames = sample_video(write_video(tmp_path / f"clip{suffix}"), tmp_path / "frames")
    assert len(frames) == 3
    assert sorted((tmp_path / "frames").iterdir()) == list(frames)
    for frame in frames:
        with Image.open(frame) as image:
            assert image.size == (64, 48)
            red, _, blue = np.asarray(image)[20, 50].tolist()
            assert red > 150 > 60 > blue


def test_the_rate_is_frames_per_second_of_the_video(tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4")
    assert len(sample_video(video, tmp_path / "more", rate=5)) == 15
    assert len(sample_video(video, tmp_path / "all", rate=1000)) == 30


def test_a_limit_spreads_the_frames_over_the_whole_video(tmp_path: Path) -> None:
    frames = sample_video(write_video(tmp_path / "clip.mp4", seconds=20, rate=5), tmp_path / "frames", limit=4)
    greens = [int(np.asarray(Image.open(frame))[:, 40:].mean((0, 1))[1]) for frame in frames]
    assert len(frames) == 4
    assert np.diff(greens) == pytest.approx([50, 50, 50], abs=12)


@pytest.mark.parametrize(("name", "content"), [("empty.mp4", b""), ("text.avi", b"no video at all " * 100)])
def test_what_is_no_video_is_refused_in_one_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"^the video cannot be read: .+$"):
        sample_video(tmp_path / name, tmp_path / "frames")


def test_a_video_cut_off_is_refused(tmp_path: Path) -> None:
    video = write_video(tmp_path / "clip.mp4")
    video.write_bytes(video.read_bytes()[:-200])
    with pytest.raises(InputError, match="the video cannot be read"):
        sample_video(video, tmp_path / "frames")


def test_a_sound_without_pictures_is_refused(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(InputError, match="it has no pictures"):
        sample_video(tmp_path / "sound.mp4", tmp_path / "frames")


def test_a_video_is_known_by_its_suffix_in_any_case() -> None:
    assert is_video(Path("a/b.MOV"))
    assert not is_video(Path("a/mp4.jpg"))


def test_frames_stand_upright_as_the_camera_was_held(tmp_path: Path) -> None:
    video = write_video(tmp_path / "phone.mp4", seconds=1)
    upright, clockwise = ((1, 0, 0, 0, 1, 0), (0, 1, 0, -1, 0, 0))  # rows of the matrix in the track's header, 16.16
    before, after = (b"".join((one << 16).to_bytes(4, signed=True) for one in matrix) for matrix in (upright, clockwise))
    head, _, tail = video.read_bytes().rpartition(before)
    video.write_bytes(head + after + tail)
    (frame,) = sample_video(video, tmp_path / "frames")
    with Image.open(frame) as image:
        assert image.size == (48, 64)
        pixels = np.asarray(image).astype(int)
    assert pixels[:32, :, 2].mean() > pixels[32:, :, 2].mean() + 30  # the left, lighter half is at the top now
