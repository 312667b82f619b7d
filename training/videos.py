"""A video to images: frames at even steps, written as JPEG files that go the way of every other image.

The frames of one video are nearly alike, so they form one group that is never parted. Needs PyAV (`pip install av`).
"""

import math
from pathlib import Path

from PIL import Image

from training.errors import InputError

SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})
RATE = 1.0  # frames per second
LIMIT = 100  # frames of one video; of a longer one they are taken further apart
QUALITY = 95  # of JPEG: a tenth of the bytes of a PNG


def is_video(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def sample_video(video: Path, folder: Path, *, rate: float = RATE, limit: int = LIMIT) -> tuple[Path, ...]:
    """Writes frames of `video`, upright, into `folder`, and returns their paths in order of time. Raises: InputError."""
    try:
        import av  # not at the top: only data sets with videos need it
    except ImportError as error:
        raise InputError(f"{video.name} is a video, and videos need PyAV: pip install av") from error
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    due = -math.inf  # seconds
    try:
        with av.open(str(video)) as container:
            step = max(1 / rate, (container.duration or 0) / av.time_base / limit)
            container.streams.video[0].thread_type = "AUTO"
            for frame in container.decode(video=0):
                time = frame.time or 0.0
                if time >= due and len(paths) < limit:
                    paths.append(folder / f"{len(paths):06}.jpg")
                    image = Image.fromarray(frame.to_ndarray(format="rgb24")).rotate(frame.rotation, expand=True)
                    image.save(paths[-1], quality=QUALITY, subsampling=0)
                    due = time + step - 1e-3  # times are rounded
    except (av.FFmpegError, IndexError, OSError) as error:
        raise InputError(f"the video cannot be read: {getattr(error, 'strerror', None) or 'it has no pictures'}") from error
    if not paths:
        raise InputError("the video has no frames")
    return tuple(paths)
