"""The first picture of a video, made by the host's `ffmpeg`, if it has one.

Files written by nodes cannot be trusted: a file that is called a video may be a list of other files or addresses, or
take hours and all memory to decode. So ffmpeg may open only files, and only the given one: containers that can name
other files (HLS, DASH, concat, pictures in a sequence) are not among its formats. It runs apart, without our
environment, with limits of time and memory.
"""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path

from comfyui.outputs.pictures import NotConvertedError
from comfyui.outputs.processes import end_process
from comfyui.tasks import end_tasks

# Demuxers, by the names that ffmpeg has for them. Each reads one file.
_FORMATS = "mov,matroska,webm,avi,ogg"
_DECODERS = (
    "h264,hevc,vp8,libvpx,vp9,libvpx-vp9,av1,libdav1d,libaom-av1,mpeg4,mpeg2video,mjpeg,prores,ffv1,theora,png,qtrle,"
    "utvideo,rawvideo,gif"
)
# dash has no -v for some limits, and macOS takes none of memory: what cannot be set is left.
_WITHIN_LIMITS = (
    'ulimit -c 0; ulimit -t "$1" 2>/dev/null; ulimit -v "$2" 2>/dev/null; ulimit -f "$3" 2>/dev/null; shift 3;'
    ' exec nice -n 5 "$@"'
)
_LONGEST_SIDE = 640
_LONGEST_REASON = 200


@dataclass(frozen=True, slots=True)
class PosterLimits:
    """Limits for one video.

    Attributes:
        seconds: until the process is ended, and as many seconds of processor time.
        max_memory: bytes of address space, in which the code of ffmpeg itself takes some hundred MB.
        max_pixels: of a frame.
        max_poster: bytes of the picture that comes out, which is at most 640 pixels wide and high.
    """

    seconds: float = 20.0
    max_memory: int = 2_000_000_000
    max_pixels: int = 80_000_000
    max_poster: int = 4_000_000


class Posters:
    """Takes pictures out of videos.

    Args:
        program: ffmpeg's path; None if there is none.
    """

    def __init__(self, program: str | None, limits: PosterLimits | None = None) -> None:
        self._program = program
        self._limits = limits or PosterLimits()

    @classmethod
    def of_host(cls, limits: PosterLimits | None = None) -> Posters:
        """Uses the installed ffmpeg, if there is one."""
        return cls(shutil.which("ffmpeg"), limits)

    @property
    def are_made(self) -> bool:
        return self._program is not None

    async def first_picture(self, video: Path) -> bytes:
        """A PNG of its first frame. Raises `NotConvertedError` if none can be made."""
        if self._program is None:
            raise NotConvertedError("the gateway's machine has no ffmpeg")
        limits = self._limits
        within = (str(int(limits.seconds)), str(limits.max_memory // 1024), str(limits.max_poster // 512))
        process = await asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", _WITHIN_LIMITS, "sh", *within, *self._command(self._program, video)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
            cwd=video.parent,
        )
        try:
            async with asyncio.timeout(limits.seconds):
                telling = asyncio.create_task(_last(process.stderr))
                try:
                    picture = await _first(process.stdout, limits.max_poster)
                    said, status = await telling, await process.wait()
                finally:
                    await end_tasks(telling)
        except TimeoutError:
            raise NotConvertedError(f"its first picture took more than {limits.seconds:g} s") from None
        finally:
            await end_process(process)
        if status != 0 or not picture:
            raise NotConvertedError(f"ffmpeg found no picture in it: {said or f'it ended with {status}'}")
        return picture

    def _command(self, program: str, video: Path) -> tuple[str, ...]:
        side = str(_LONGEST_SIDE)
        return (
            *(program, "-nostdin", "-hide_banner", "-loglevel", "error"),
            *("-protocol_whitelist", "file", "-format_whitelist", _FORMATS, "-codec_whitelist", _DECODERS),
            *("-max_pixels", str(self._limits.max_pixels), "-threads", "1", "-an", "-sn", "-dn"),
            *("-i", f"file:{video}", "-map", "0:v:0", "-frames:v", "1", "-threads", "1", "-filter_threads", "1"),
            *("-vf", f"scale=w='min({side},iw)':h='min({side},ih)':force_original_aspect_ratio=decrease"),
            *("-f", "image2pipe", "-c:v", "png", "pipe:1"),
        )


async def _first(stream: asyncio.StreamReader | None, most: int) -> bytes:
    """All of it. Raises `NotConvertedError` for more than `most` bytes."""
    found = bytearray()
    while stream is not None and (chunk := await stream.read(1 << 16)):
        found += chunk
        if len(found) > most:
            raise NotConvertedError("its first picture is too large")
    return bytes(found)


async def _last(stream: asyncio.StreamReader | None) -> str:
    """The last line, without the path of the file that it begins with."""
    found = b""
    while stream is not None and (chunk := await stream.read(1 << 16)):
        found = (found + chunk)[-4096:]
    lines = found.decode("utf-8", "replace").strip().splitlines() or [""]
    return lines[-1].rpartition(": ")[2][:_LONGEST_REASON]
