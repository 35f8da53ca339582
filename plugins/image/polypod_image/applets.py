"""Names under which busybox is commonly linked."""

from __future__ import annotations

from typing import Final

_TEXT: Final = """
[ arch ash awk base64 basename cat chgrp chmod chown chroot cksum clear cmp cp cut date dd df diff dirname
dmesg du echo ed egrep env expand expr factor false fgrep find fold free getopt grep groups gunzip gzip head
hexdump hostid hostname httpd id ifconfig install ip kill killall last less link ln logger login ls lsof
md5sum mesg mkdir mkfifo mknod mktemp more mount mv nc netstat nice nohup nproc nslookup od paste patch
pgrep pidof ping ping6 pkill printenv printf ps pwd readlink realpath renice reset rm rmdir route sed seq
setsid sh sha1sum sha256sum sha512sum shuf sleep sort split stat strings stty su sync sysctl tac tail tar tee
telnet test time timeout top touch tr traceroute true truncate tty umount uname uniq unlink unzip uptime
usleep vi watch wc wget which whoami xargs xxd yes zcat
"""
APPLETS: Final = tuple(_TEXT.split())


_TABLE: Final = b"\0[\0[[\0"
"""How a busybox's own table of applets begins: sorted names, each ended by NUL."""
_MAX_TABLE: Final = 16 << 10


def applets_of(busybox: bytes) -> tuple[str, ...]:
    """Return those of `APPLETS` that a busybox has; all of them if its table is not found."""
    at = busybox.find(_TABLE)
    if at < 0:
        return APPLETS
    table = busybox[at + 1 : at + _MAX_TABLE].partition(b"\0\0")[0]
    names = {name.decode(errors="replace") for name in table.split(b"\0")}
    return tuple(name for name in APPLETS if name in names)
