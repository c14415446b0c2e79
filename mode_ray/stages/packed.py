"""A mapping whose values are held as compressed text: a quarter of a million records in tens of megabytes."""

import zlib
from collections.abc import Callable, Iterator, MutableMapping
from typing import Generic, TypeVar

_LEVEL = 6  # a higher level gains little: most of the saving comes from the preset dictionary, the first text
_WINDOW_BITS = -11  # 2 kB, several records; negative: no header and no checksum

_Value = TypeVar("_Value")


class PackedMapping(MutableMapping[str, _Value], Generic[_Value]):
    """Values by name; each access builds a new one. What a text shares with the first text takes no memory.

    Args:
        to_text: Turns a value into text.
        from_text: Turns that back.
    """

    def __init__(self, to_text: Callable[[_Value], str], from_text: Callable[[str], _Value]) -> None:
        self._to_text = to_text
        self._from_text = from_text
        self._first = b""
        self._packed: dict[bytes, bytes] = {}  # names as UTF-8, a fifth smaller than a string

    def __getitem__(self, name: str) -> _Value:
        packed = self._packed[name.encode()]
        return self._from_text(zlib.decompressobj(_WINDOW_BITS, zdict=self._first).decompress(packed).decode())

    def __setitem__(self, name: str, value: _Value) -> None:
        self.put_text(name, self._to_text(value))

    def put_text(self, name: str, value: str) -> None:
        """Store a value by its text, as `to_text` makes it."""
        text = value.encode()
        self._first = self._first or text
        packer = zlib.compressobj(_LEVEL, wbits=_WINDOW_BITS, memLevel=3, zdict=self._first)
        self._packed[name.encode()] = packer.compress(text) + packer.flush()

    def __delitem__(self, name: str) -> None:
        del self._packed[name.encode()]

    def __iter__(self) -> Iterator[str]:
        return (name.decode() for name in self._packed)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.encode() in self._packed

    def sorted_items(self) -> Iterator[tuple[str, _Value]]:
        """All items in order of their names; one value is built at a time."""
        # UTF-8 sorts as its text does.
        return ((name.decode(), self[name.decode()]) for name in sorted(self._packed))

    def __len__(self) -> int:
        return len(self._packed)
