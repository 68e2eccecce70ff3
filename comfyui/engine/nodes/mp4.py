"""The smallest MP4 that is one: a single track of Motion JPEG (ISO/IEC 14496-12), written and read."""

from __future__ import annotations

import struct

_TICKS = 1000
_MATRIX = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)


def write_frames(jpegs: list[bytes], size: tuple[int, int], frame_rate: float) -> bytes:
    """The file: its head, then all frames in one chunk, then the index."""
    head = _box(b"ftyp", b"isom", struct.pack(">I", 0x200), b"isomiso2mp41")
    data = _box(b"mdat", *jpegs)
    return head + data + _index([len(jpeg) for jpeg in jpegs], len(head) + 8, size, frame_rate)


def read_frames(content: bytes) -> list[bytes]:
    """The JPEGs of such a file. Raises ValueError for any other."""
    boxes = dict(_boxes(content))
    if b"ftyp" not in boxes or b"moov" not in boxes:
        raise ValueError("no MP4")
    sizes, offsets = _table(boxes[b"moov"], b"stsz", 8), _table(boxes[b"moov"], b"stco", 4)
    if not sizes or len(offsets) != 1:
        raise ValueError("no Motion JPEG in one chunk")
    frames, start = [], offsets[0]
    for size in sizes:
        frames.append(content[start : start + size])
        start += size
    if not all(frame.startswith(b"\xff\xd8") for frame in frames):
        raise ValueError("no Motion JPEG")
    return frames


def _boxes(content: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 0
    while at + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        if length < 8:
            raise ValueError("no MP4")
        found.append((kind, content[at + 8 : at + length]))
        at += length
    return found


def _table(moov: bytes, kind: bytes, count_at: int) -> list[int]:
    """The numbers of one table of the index; its count stands `count_at` bytes after the box's head."""
    at = moov.find(kind)
    if at < 0:
        return []
    (count,) = struct.unpack_from(">I", moov, at + 4 + count_at)
    if count > len(moov) // 4:
        raise ValueError("no MP4")
    return list(struct.unpack_from(f">{count}I", moov, at + 8 + count_at))


def _box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", len(body) + 8, kind) + body


def _full(kind: bytes, flags: int, *parts: bytes) -> bytes:
    return _box(kind, struct.pack(">I", flags), *parts)


def _index(sizes: list[int], offset: int, size: tuple[int, int], frame_rate: float) -> bytes:
    each = round(_TICKS / frame_rate)
    duration = each * len(sizes)
    width, height = size
    movie = _full(
        b"mvhd", 0, struct.pack(">4I", 0, 0, _TICKS, duration), struct.pack(">IHHII", 0x10000, 0x100, 0, 0, 0), _MATRIX,
        bytes(24), struct.pack(">I", 2),
    )  # fmt: skip
    track = _full(
        b"tkhd", 7, struct.pack(">5I", 0, 0, 1, 0, duration), bytes(16), _MATRIX,
        struct.pack(">2I", width << 16, height << 16),
    )  # fmt: skip
    entry = _box(
        b"jpeg", bytes(6), struct.pack(">H", 1), bytes(16), struct.pack(">2H", width, height),
        struct.pack(">3IH", 0x480000, 0x480000, 0, 1), bytes(32), struct.pack(">Hh", 24, -1),
    )  # fmt: skip
    samples = _box(
        b"stbl",
        _full(b"stsd", 0, struct.pack(">I", 1), entry),
        _full(b"stts", 0, struct.pack(">3I", 1, len(sizes), each)),
        _full(b"stsc", 0, struct.pack(">4I", 1, 1, len(sizes), 1)),
        _full(b"stsz", 0, struct.pack(f">2I{len(sizes)}I", 0, len(sizes), *sizes)),
        _full(b"stco", 0, struct.pack(">2I", 1, offset)),
    )
    reference = _full(b"dref", 0, struct.pack(">I", 1), _full(b"url ", 1))
    media = _box(
        b"mdia",
        _full(b"mdhd", 0, struct.pack(">4IHH", 0, 0, _TICKS, duration, 0x55C4, 0)),
        _full(b"hdlr", 0, bytes(4), b"vide", bytes(12), b"video\0"),
        _box(b"minf", _full(b"vmhd", 1, bytes(8)), _box(b"dinf", reference), samples),
    )
    return _box(b"moov", movie, _box(b"trak", track, media))
