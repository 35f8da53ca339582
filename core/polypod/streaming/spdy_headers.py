"""Name/value blocks of SPDY/3.1: a zlib stream for each direction, primed with a fixed dictionary.

Spec:
    SPDY Protocol Draft 3.1, 2.6.10 (Name/Value Header Block).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping

from polypod.streaming.errors import ProtocolError

MAX_BLOCK_BYTES = 64 * 1024
"""Of one block, uncompressed: a few bytes of zlib may unfold to gigabytes."""
MAX_PAIRS = 256

_WORDS = (
    "options,head,post,put,delete,trace,accept,accept-charset,accept-encoding,accept-language,"
    "accept-ranges,age,allow,authorization,cache-control,connection,content-base,content-encoding,"
    "content-language,content-length,content-location,content-md5,content-range,content-type,date,"
    "etag,expect,expires,from,host,if-match,if-modified-since,if-none-match,if-range,"
    "if-unmodified-since,last-modified,location,max-forwards,pragma,proxy-authenticate,"
    "proxy-authorization,range,referer,retry-after,server,te,trailer,transfer-encoding,upgrade,"
    "user-agent,vary,via,warning,www-authenticate,method,get,status,200 OK,version,HTTP/1.1,url,"
    "public,set-cookie,keep-alive,origin"
)
_CODES = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
)
_PHRASES = (
    "203 Non-Authoritative Information",
    "204 No Content",
    "301 Moved Permanently",
    "400 Bad Request",
    "401 Unauthorized",
    "403 Forbidden",
    "404 Not Found",
    "500 Internal Server Error",
    "501 Not Implemented",
    "503 Service Unavailable",
)
_TAIL = (
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, "
    "GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,"
    "text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8"
    "charset=iso-8859-1,utf-,*,enq=0."
)

DICTIONARY = (
    b"".join(struct.pack(">I", len(word)) + word.encode() for word in _WORDS.split(","))
    + "".join((_CODES, *_PHRASES, _TAIL)).encode()
)
"""Its Adler-32 is 0xe3c6a7c2: zlib names it by that in every first block."""


class Packer:
    """The compressing direction. Blocks must be sent in the order in which they were packed."""

    def __init__(self) -> None:
        self._zlib = zlib.compressobj(zdict=DICTIONARY)

    def pack(self, pairs: Mapping[str, str]) -> bytes:
        """Return a compressed block; names are sent in lower case."""
        block = struct.pack(">I", len(pairs))
        for name, value in pairs.items():
            for text in (name.lower(), value):
                raw = text.encode()
                block += struct.pack(">I", len(raw)) + raw
        return self._zlib.compress(block) + self._zlib.flush(zlib.Z_SYNC_FLUSH)


class Unpacker:
    """The other direction: every block must pass through it, wanted or not."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(zdict=DICTIONARY)

    def unpack(self, block: bytes) -> dict[str, str]:
        """Return the pairs of a block, names in lower case.

        Raises:
            ProtocolError: it is no zlib, unfolds to too much, or does not hold what it says.
        """
        try:
            plain = self._zlib.decompress(block, MAX_BLOCK_BYTES + 1)
        except zlib.error as error:
            raise ProtocolError(f"headers: {error}") from error
        if len(plain) > MAX_BLOCK_BYTES:
            raise ProtocolError(f"headers: more than {MAX_BLOCK_BYTES} bytes")
        return _pairs(plain)


def _pairs(plain: bytes) -> dict[str, str]:
    count, at = _number(plain, 0)
    if count > MAX_PAIRS:
        raise ProtocolError(f"headers: {count} pairs; at most {MAX_PAIRS} are read")
    found: dict[str, str] = {}
    for _ in range(count):
        name, at = _text(plain, at)
        value, at = _text(plain, at)
        name = name.lower()
        if not name or name in found:
            raise ProtocolError(f"headers: {name!r} is empty or comes twice")
        found[name] = value
    if at != len(plain):
        raise ProtocolError("headers: something follows the last pair")
    return found


def _number(plain: bytes, at: int) -> tuple[int, int]:
    if len(plain) - at < 4:
        raise ProtocolError("headers: cut off in a length")
    return int.from_bytes(plain[at : at + 4], "big"), at + 4


def _text(plain: bytes, at: int) -> tuple[str, int]:
    length, at = _number(plain, at)
    if len(plain) - at < length:
        raise ProtocolError("headers: cut off in a string")
    return plain[at : at + length].decode(errors="replace"), at + length
