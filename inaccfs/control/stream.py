"""Parses a stream of bytes to commands: JSON objects in sequence, as QEMU does.

Line ends do not matter: an object may take several lines, and a line may have several
objects. Bytes that cannot become an object are refused as soon as that is certain, and
parsing continues after the next line end. See QEMU's qobject/json-streamer.c.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import msgspec

from inaccfs.control import qmp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inaccfs.control.messages import Command
    from inaccfs.control.qmp import RequestId

# MAX_NESTING of QEMU's json-streamer.
_DEEPEST: Final = 1024


class Asked(msgspec.Struct, frozen=True):
    """A parsed command. It is a Struct because making one is faster than a tuple."""

    command: Command
    id: RequestId
    # Where it begins in the last fed bytes; negative if it began in earlier ones.
    begin: int


class Refused(NamedTuple):
    """Bytes that are not a command, and the reply to them."""

    reply: bytes
    begin: int


class TooLong(NamedTuple):
    """An object is longer than the limit. The rest of the stream is not parsed."""

    begin: int


Found: TypeAlias = Asked | Refused | TooLong


class Stream:
    """Parses the input of one peer."""

    def __init__(self, limit: int) -> None:
        """*limit* is how many bytes an object, or skipped input, may have."""
        self._limit: Final = limit
        # The incomplete object.
        self._text = bytearray()
        self._object = _Object()
        # How much of a refused line was skipped; None if no line is being skipped.
        self._skipped: int | None = None

    @property
    def is_between(self) -> bool:
        """Whether the next byte begins an object."""
        return not self._text and self._skipped is None

    @property
    def begun(self) -> int:
        """How many bytes of an incomplete object there are."""
        return len(self._text)

    def feed(self, data: bytes) -> Iterator[Found]:
        """Add received data; yield complete objects. Exhaust the iterator."""
        at = 0
        found: Found | None
        while at < len(data):
            if self._skipped is not None:
                at, found = self._skip(data, at)
            elif self._text:
                at, found = self._go_on(data, at)
            else:
                at, found = self._begin(data, at)
            if found is not None:
                yield found

    def _skip(self, data: bytes, at: int) -> tuple[int, TooLong | None]:
        """Skip the rest of a refused line."""
        assert self._skipped is not None
        end = data.find(b"\n", at) + 1
        self._skipped += (end or len(data)) - at
        if self._skipped > self._limit:
            return len(data), TooLong(at)
        if end:
            self._skipped = None
        return end or len(data), None

    def _begin(self, data: bytes, at: int) -> tuple[int, Found | None]:
        if data[at] != _OBJECT:
            at = _skip_space(data, at)
            if at == len(data):
                return at, None
        # The usual case: a line with one object.
        end = data.find(b"\n", at) + 1 if data[at] == _OBJECT else 0
        if end and end - at <= self._limit:
            try:
                command, request_id = qmp.decode_request(data[at:end])
                return end, Asked(command, request_id, at)
            except qmp.MalformedError:
                pass
            except qmp.BadRequestError as exc:
                return end, Refused(exc.reply, at)
        self._object = _Object()
        return self._go_on(data, at)

    def _go_on(self, data: bytes, at: int) -> tuple[int, Found | None]:
        """Add *data* from *at* to an object, up to its end."""
        begin = at - len(self._text)
        self._text += memoryview(data)[at:]
        try:
            end = self._object.scan(self._text)
        except ValueError as exc:
            self._text = bytearray()
            self._skipped = 0
            reply = qmp.encode_error("GenericError", f"EINVAL: {exc}", qmp.NO_ID)
            # Continue at the wrong character, which may be the line end itself.
            return max(begin + self._object.at, at), Refused(reply, begin)
        if (end or len(self._text)) > self._limit:
            self._text = bytearray()
            return len(data), TooLong(begin)
        if end is None:
            return len(data), None
        text = bytes(memoryview(self._text)[:end])
        self._text = bytearray()
        try:
            return begin + end, Asked(*qmp.decode_request(text), begin)
        except qmp.BadRequestError as exc:
            return begin + end, Refused(exc.reply, begin)


def _skip_space(data: bytes | bytearray, at: int) -> int:
    found = _SPACE.match(data, at)
    assert found is not None
    return found.end()


_SPACE: Final = re.compile(rb"[ \t\r\n]*")

# The content of a string, without quotes: RFC 8259 and, for UTF-8, RFC 3629.
_TAIL: Final = rb"[\x80-\xbf]"
_IN_STRING: Final = re.compile(
    rb'(?:[^"\\\x00-\x1f\x80-\xff]+|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4}'
    rb"|[\xc2-\xdf]"
    + _TAIL
    + rb"|\xe0[\xa0-\xbf]"
    + _TAIL
    + rb"|\xed[\x80-\x9f]"
    + _TAIL
    + rb"|[\xe1-\xec\xee\xef]"
    + _TAIL
    + rb"{2}|\xf0[\x90-\xbf]"
    + _TAIL
    + rb"{2}|[\xf1-\xf3]"
    + _TAIL
    + rb"{3}|\xf4[\x80-\x8f]"
    + _TAIL
    + rb"{2})*"
)
# The first bytes of an incomplete escape or character.
_CUT_IN_STRING: Final = re.compile(
    rb"\\(?:u[0-9a-fA-F]{0,3})?"
    rb"|[\xc2-\xdf]|\xe0[\xa0-\xbf]?|\xed[\x80-\x9f]?|[\xe1-\xec\xee\xef]"
    + _TAIL
    + rb"?|\xf0(?:[\x90-\xbf]"
    + _TAIL
    + rb"?)?|[\xf1-\xf3]"
    + _TAIL
    + rb"{0,2}|\xf4(?:[\x80-\x8f]"
    + _TAIL
    + rb"?)?"
)
# Numbers and true, false, null, also incomplete ones.
_BARE: Final = re.compile(rb"[-+.0-9A-Za-z]*")
_WORD: Final = re.compile(
    rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null"
)
_WORD_BEGUN: Final = re.compile(
    rb"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*|(?:\.[0-9]+)?[eE][-+]?[0-9]*)?)?"
    rb"|t(?:ru?)?|f(?:a(?:ls?)?)?|n(?:ul?)?"
)

# What may come next.
_VALUE, _VALUE_OR_END, _NAME, _NAME_OR_END, _COLON, _MORE = range(6)
_OBJECT, _ARRAY = ord("{"), ord("[")


class _Object:
    """The scanner of one object, which may arrive byte by byte."""

    __slots__ = ("_in_string", "_next", "_open", "at")

    def __init__(self) -> None:
        # Where to continue; after `scan` has raised, the wrong character.
        self.at = 0
        self._in_string = False
        self._next = _VALUE
        # The open objects and arrays, by their first byte.
        self._open = bytearray()

    def scan(self, text: bytearray) -> int | None:
        """Scan on; return where the object ends, or None if it is incomplete.

        *text* is the whole object so far; more data may follow its end.

        Raises:
            ValueError: no continuation can make it a JSON object.
        """
        while True:
            if self._in_string:
                if not self._scan_string(text):
                    return None
            else:
                self.at = _skip_space(text, self.at)
                if self.at == len(text) or not self._scan_token(text):
                    return None
                if not self._open:
                    return self.at

    def _scan_string(self, text: bytearray) -> bool:
        """Find the end of a string; False if it is incomplete."""
        found = _IN_STRING.match(text, self.at)
        assert found is not None
        self.at = at = found.end()
        if at == len(text):
            return False
        if text[at] != ord('"'):
            if _CUT_IN_STRING.fullmatch(text, at):
                return False
            raise ValueError(f"byte {text[at]:#04x} in a string: not JSON")
        self.at += 1
        self._in_string = False
        self._next = _COLON if self._next in (_NAME, _NAME_OR_END) else _MORE
        return True

    def _scan_token(self, text: bytearray) -> bool:
        """Scan one token; False if it is incomplete."""
        byte = text[self.at]
        expected = self._next
        if not self._open and byte != _OBJECT:
            raise ValueError(f"{_show(byte)} where an object begins: send JSON objects")
        if expected in (_VALUE, _VALUE_OR_END):
            if byte in (_OBJECT, _ARRAY):
                if len(self._open) == _DEEPEST:
                    raise ValueError(
                        f"more than {_DEEPEST} objects and arrays in each other"
                    )
                self._open.append(byte)
                self._next = _NAME_OR_END if byte == _OBJECT else _VALUE_OR_END
            elif byte == ord('"'):
                self._in_string = True
            elif byte != ord("]") or expected == _VALUE:
                return self._scan_word(text)
            else:
                self._end()
        elif byte == ord('"') and expected in (_NAME, _NAME_OR_END):
            self._in_string = True
        elif byte == ord(":") and expected == _COLON:
            self._next = _VALUE
        elif byte == ord(",") and expected == _MORE:
            self._next = _NAME if self._open[-1] == _OBJECT else _VALUE
        elif (byte == ord("}") and expected == _NAME_OR_END) or (
            expected == _MORE
            and byte == (ord("}") if self._open[-1] == _OBJECT else ord("]"))
        ):
            self._end()
        else:
            raise ValueError(f"{_show(byte)} in an object: not JSON")
        self.at += 1
        return True

    def _end(self) -> None:
        self._open.pop()
        self._next = _MORE

    def _scan_word(self, text: bytearray) -> bool:
        found = _BARE.match(text, self.at)
        assert found is not None
        word, end = found[0], found.end()
        is_word = _WORD.fullmatch(word)
        if end == len(text) and (is_word or _WORD_BEGUN.fullmatch(word)):
            # It may be incomplete.
            return False
        if not is_word:
            raise ValueError(f"{_show(text[self.at])} where a value begins: not JSON")
        self.at = end
        self._next = _MORE
        return True


def _show(byte: int) -> str:
    return repr(chr(byte)) if 0x20 < byte < 0x7F else f"byte {byte:#04x}"
