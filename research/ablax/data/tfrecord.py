"""TFRecord files read in order, without TensorFlow."""

import struct
from collections.abc import Iterator
from pathlib import Path

from ablax.config import RequestError


def _crc32c_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _crc32c_table()


def masked_crc32c(data: bytes) -> int:
    """The checksum of the TFRecord format: CRC-32C (RFC 3720, Castagnoli's polynomial), rotated and
    offset (tensorflow/core/lib/hash/crc32c.h)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def read_tfrecords(path: Path) -> Iterator[bytes]:
    """The records of one file: length (uint64), its checksum, the bytes, their checksum.

    The checksum of each length is verified; the one of the bytes is not, because that takes seconds
    per megabyte in pure Python. A damaged record fails when it is parsed as an example.

    Raises:
      RequestError: the file is cut short or its framing is damaged.
    """
    with open(path, "rb") as file:
        while header := file.read(12):
            start = file.tell() - len(header)
            if (
                len(header) == 12
                and masked_crc32c(header[:8]) != struct.unpack("<I", header[8:])[0]
            ):
                raise RequestError(f"{path}: damaged TFRecord at byte {start}; prepare it again")
            length = int.from_bytes(header[:8], "little")
            record = file.read(length + 4)
            if len(header) < 12 or len(record) < length + 4:
                raise RequestError(f"{path}: TFRecord cut short at byte {start}; prepare it again")
            yield record[:length]
