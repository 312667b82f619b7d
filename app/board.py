"""What the workers of one service let each other know: each has a place in shared memory and writes on it every second.

Whichever worker is asked for metrics or health so speaks for all. A note may be a second old; a torn one is read again.
"""

import mmap
import struct
import time
import zlib

PERIOD_SECONDS = 1.0
_PLACE_BYTES = 2**20  # only what is written takes memory
_HEADER = struct.Struct("<IId")  # checksum, length, when by time.monotonic, which all processes share


class Board:
    """Made before the processes fork; each then sets `own` to its number."""

    def __init__(self, places: int) -> None:
        self.own = 0
        self._places = places
        self._memory = mmap.mmap(-1, 2 * places * _PLACE_BYTES)

    def write(self, note: bytes, *, decision: bool = False) -> None:
        """Replaces the own note, or the own decision for all; one too long for its place is cut."""
        note = note[: _PLACE_BYTES - _HEADER.size]
        begin = (self.own + decision * self._places) * _PLACE_BYTES
        _HEADER.pack_into(self._memory, begin, zlib.crc32(note), len(note), time.monotonic())
        self._memory[begin + _HEADER.size : begin + _HEADER.size + len(note)] = note

    def others(self) -> list[tuple[float, bytes]]:
        """Every other worker's note and how many seconds old it is."""
        return [self._read(place) for place in range(self._places) if place != self.own]

    def decision(self) -> bytes:
        """What was last decided, by whichever worker; empty while nothing is."""
        return min(self._read(self._places + place) for place in range(self._places))[1]

    def _read(self, place: int) -> tuple[float, bytes]:
        begin = place * _PLACE_BYTES
        while True:
            check, length, written_at = _HEADER.unpack_from(self._memory, begin)
            note = self._memory[begin + _HEADER.size : begin + _HEADER.size + length]
            if zlib.crc32(note) == check:
                return time.monotonic() - written_at, note
            time.sleep(0.0001)  # it is being written
