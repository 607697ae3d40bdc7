"""A video that a browser can play, of any size.

`clip.mp4` is 20 seconds of a moving gradient (VP9) and silence (Opus) in 16 kB, made by

    ffmpeg -f lavfi -i gradients=s=320x180:r=5:d=20:c0=0x0f766e:c1=0x1e3a8a:c2=0xf59e0b:nb_colors=3:speed=0.02
           -f lavfi -i anullsrc=r=48000:cl=mono -shortest -c:v libvpx-vp9 -crf 45 -b:v 0 -g 10
           -pix_fmt yuv420p -c:a libopus -b:a 6k -frame_duration 60 -fflags +bitexact clip.mp4
"""  # noqa: E501  # one command

from __future__ import annotations

import struct
from pathlib import Path

_CLIP = Path(__file__).with_name("clip.mp4")
SECONDS = 20


def video(padding_bytes: int) -> bytes:
    """The clip, with zeros between its first half and its second half.

    More of them than a browser reads ahead, so that it can reach the second half, and the index at
    the end, only by ranges.
    """
    boxes = dict(_boxes(_CLIP.read_bytes()))
    media, index = boxes[b"mdat"], bytearray(boxes[b"moov"])
    start = sum(len(box) + 8 for name, box in boxes.items() if name not in (b"mdat", b"moov"))
    offsets = [at for table in _chunk_tables(index) for at in table]
    chunks = {at: struct.unpack_from(">I", index, at)[0] for at in offsets}
    cut = sorted(chunks.values())[len(chunks) // 2]
    for at, offset in chunks.items():
        if offset >= cut:
            struct.pack_into(">I", index, at, offset + padding_bytes)
    cut -= start + 8
    padded = media[:cut] + bytes(padding_bytes) + media[cut:]
    return b"".join(
        struct.pack(">I4s", len(box) + 8, name) + box
        for name, box in (boxes | {b"mdat": padded, b"moov": bytes(index)}).items()
    )


def _boxes(data: bytes) -> list[tuple[bytes, bytes]]:
    """The top level boxes of an MP4 file, in their order."""
    found, at = [], 0
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        found.append((name, data[at + 8 : at + length]))
        at += length
    return found


def _chunk_tables(index: bytes | bytearray) -> list[range]:
    """Where each track's offsets of its chunks are, 4 bytes each (the boxes `stco`)."""
    tables, at = [], index.find(b"stco")
    while at >= 0:
        (count,) = struct.unpack_from(">I", index, at + 8)
        tables.append(range(at + 12, at + 12 + 4 * count, 4))
        at = index.find(b"stco", at + 4)
    return tables
