"""The images that the CRI conformance suite wants, made of this host's programs and served on loopback.

::

    cd tests && python -m support.critest_images DIRECTORY [--port PORT]

builds them, pushes them into a docker-registry on 127.0.0.1, writes ``DIRECTORY/hosts.d``, which sends every
registry host there, prints how to run the suite, and serves until it is interrupted. Nothing of the suite
itself is needed for that. One image cannot be made: that whose digest the suite fixes. With
``--critest PATH`` a copy of the suite's program is written that wants the digest of our image instead.

What it takes: busybox-static, nginx-light, gcc, docker-registry. What a missing one makes impossible is named
and left out.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from polypod_image.hosttree import HostTree
from support.images import image_of
from support.registry import Image, Registry, push

E2E = "e2e-test-images"
STAGING = "k8s-staging-cri-tools"
_PASSWD = (
    "root:x:0:0:root:/root:/bin/sh\n"
    "www-data:x:33:33:www-data:/var/www:/bin/false\n"
    "nobody:x:65534:65534:nobody:/:/bin/false\n"
)
_GROUP = "root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n"
_DIRECTORIES = {"/dev": 0o755, "/proc": 0o555, "/sys": 0o555, "/tmp": 0o1777, "/root": 0o700}

_PGREP = """\
#!/bin/sh
# pgrep NAME: pids of processes of that name, by what the kernel calls them.
found=1
for each in /proc/[0-9]*; do
    read -r name 2>/dev/null <"$each/comm" || continue
    [ "$name" = "$1" ] && { echo "${each#/proc/}"; found=0; }
done
exit $found
"""
_IPCS = """\
#!/bin/sh
# ipcs -m: the shared memory segments of this namespace.
echo "key shmid owner perms bytes nattch"
while read -r key id perms bytes _cpid _lpid nattch owner _rest; do
    [ "$key" = key ] || echo "$key $id $owner $perms $bytes $nattch"
done </proc/sysvipc/shm
"""
_NGINX = """\
user root;
worker_processes 1;
error_log stderr;
pid /var/run/nginx.pid;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path /tmp/body;
    proxy_temp_path /tmp/proxy;
    fastcgi_temp_path /tmp/fastcgi;
    uwsgi_temp_path /tmp/uwsgi;
    scgi_temp_path /tmp/scgi;
    server {{
        listen {port};
        location / {{ root /www; index index.html; }}
    }}
}}
"""
_PAGE = "<html><body>a page</body></html>\n"
_PAUSE = """\
#include <signal.h>
#include <unistd.h>
static void leave(int signal) { (void)signal; _exit(0); }
int main(void) {
    signal(SIGTERM, leave);
    signal(SIGINT, leave);
    for (;;) pause();
}
"""
_EFFECTIVE = """\
#include <stdio.h>
#include <unistd.h>
int main(void) { printf("Effective uid: %d\\n", (int)geteuid()); return 0; }
"""


@dataclass
class Made:
    """Images by ``repository:tag``, and what could not be made."""

    images: dict[str, Image] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)


def make_all() -> Made:
    """Make every image that this host has the programs for."""
    made = Made()
    busybox = _busybox_layer()
    base = [busybox]
    shell = {"Cmd": ["/bin/sh"]}
    made.images[f"{E2E}/busybox:1.29-2"] = image_of(base, config=shell)
    made.images[f"{E2E}/httpd:2.4.39-4"] = image_of(
        [*base, _files({"/www/index.html": _PAGE})],
        config={"Cmd": ["/bin/sh", "-c", "echo httpd serves >&2; exec httpd -f -p 80 -h /www"]},
    )
    _users(made, base)
    _plain(made, base)
    _web(made, base)
    _compiled(made)
    return made


def _users(made: Made, base: list[bytes]) -> None:
    for name, user in (
        ("user-uid", "1002"),
        ("user-username", "www-data"),
        ("user-uid-group", "1003:1004"),
        ("user-username-group", "www-data:1004"),
    ):
        image = image_of(base, config={"Cmd": ["/bin/sh"], "User": user})
        made.images[f"{STAGING}/test-image-{name}:latest"] = image
    groups = {
        "/etc/passwd": _PASSWD + "default-user:x:1000:1000::/home:/bin/sh\n",
        "/etc/group": _GROUP
        + "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n",
    }
    made.images[f"{STAGING}/test-image-predefined-group:latest"] = image_of(
        [*base, _files(groups)], config={"Cmd": ["/bin/sh"], "User": "1000"}
    )


def _plain(made: Made, base: list[bytes]) -> None:
    for name, tags in (
        ("latest", ["latest"]),
        ("1", ["latest"]),
        ("2", ["latest"]),
        ("3", ["latest"]),
        ("tags", ["1", "2", "3"]),
        ("tag", ["test", "all"]),
        ("digest", ["latest"]),
    ):
        image = image_of(
            [*base, _files({f"/test-image-{name}": f"{name}\n"})], config={"Cmd": ["/bin/sh"]}
        )
        for tag in tags:
            made.images[f"{STAGING}/test-image-{name}:{tag}"] = image


def _web(made: Made, base: list[bytes]) -> None:
    names = {f"{E2E}/nginx:1.14-2": 80, f"{STAGING}/hostnet-nginx-amd64:latest": 12003}
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if program is None:
        made.missing.update(dict.fromkeys(names, "nginx is not installed (nginx-light)"))
        return
    for name, port in names.items():
        tree = HostTree()
        place = tree.program(Path(program))
        for directory in ("/var/run", "/var/log/nginx", "/var/lib/nginx"):
            tree.directory(directory)
        tree.file("/etc/nginx/nginx.conf", _NGINX.format(port=port).encode())
        tree.file("/www/index.html", _PAGE.encode())
        made.images[name] = image_of(
            [*base, tree.tar()],
            config={"Cmd": [place, "-c", "/etc/nginx/nginx.conf", "-g", "daemon off;"]},
        )


def _compiled(made: Made) -> None:
    names = {"pause:3.9": (_PAUSE, 0o755), f"{E2E}/nonewprivs:1.3": (_EFFECTIVE, 0o4755)}
    for name, (source, mode) in names.items():
        try:
            program = _compile(source)
        except (OSError, subprocess.CalledProcessError) as error:
            made.missing[name] = f"gcc cannot make a static program: {error}"
            continue
        tree = HostTree()
        tree.file("/program", program, mode)
        made.images[name] = image_of([tree.tar()], config={"Entrypoint": ["/program"]})


def _compile(source: str) -> bytes:
    with tempfile.TemporaryDirectory() as place:
        file, program = Path(place, "program.c"), Path(place, "program")
        file.write_text(source)
        subprocess.run(
            ["gcc", "-static", "-Os", "-s", "-o", str(program), str(file)],
            check=True,
            stdin=subprocess.DEVNULL,
        )
        return program.read_bytes()


def _busybox_layer() -> bytes:
    """Return a root of busybox: applets are hard links, and ``/bin/sh`` executes ``ls``.

    The suite masks ``/bin/ls`` and wants the shell's own complaint; Debian's busybox would run its built-in
    ``ls`` instead. So ``/bin/sh`` is a copy that does not know the applet by that name.
    """
    program = Path(shutil.which("busybox") or "/bin/busybox").resolve()
    data = program.read_bytes()
    table = b"losetup\0ls\0lsmod\0"
    if table not in data:
        raise RuntimeError(f"{program}: its table of applets looks different from Debian 12's")
    tree = HostTree()
    for directory, mode in _DIRECTORIES.items():
        tree.directory(directory, mode)
    tree.file("/etc/passwd", _PASSWD.encode())
    tree.file("/etc/group", _GROUP.encode())
    tree.file("/bin/busybox", data, 0o755)
    tree.file("/bin/sh", data.replace(table, b"losetup\0lr\0lsmod\0"), 0o755)
    tree.file("/bin/pgrep", _PGREP.encode(), 0o755)
    tree.file("/bin/ipcs", _IPCS.encode(), 0o755)
    listed = subprocess.run([str(program), "--list"], check=True, stdout=subprocess.PIPE, text=True)
    for name in listed.stdout.split():
        tree.link(f"/bin/{name}", "/bin/busybox")
    return tree.tar()


def _files(files: Mapping[str, str]) -> bytes:
    tree = HostTree()
    for path, text in files.items():
        tree.file(path, text.encode())
    return tree.tar()


def serve_all(registry: Registry, hosts_dir: Path, made: Made) -> None:
    """Push all images and write the rule that sends every registry host to the registry."""
    for name, image in made.images.items():
        repository, _, tag = name.rpartition(":")
        push(registry.address, repository, tag, image)
    rule = hosts_dir / "_default" / "hosts.toml"
    rule.parent.mkdir(parents=True, exist_ok=True)
    rule.write_text(f'server = "http://{registry.address}"\n')


def with_own_digest(program: bytes, digest: str) -> bytes:
    """Return the suite's program with the digest of our image in place of the one that nobody can rebuild.

    Raises:
        ValueError: the program does not name exactly one.
    """
    found = set(re.findall(rb"/test-image-digest@sha256:[0-9a-f]{64}", program))
    if len(found) != 1:
        raise ValueError(f"names {len(found)} digests of test-image-digest, expected was one")
    return program.replace(found.pop(), f"/test-image-digest@{digest}".encode())


def main() -> None:
    """Build, push, say how to run, serve."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("directory", type=Path, help="for the registry's data and hosts.d")
    parser.add_argument("--critest", type=Path, help="the suite's program: write a copy, see above")
    parser.add_argument("--port", type=int, default=0, help="of the registry (default: a free one)")
    args = parser.parse_args()
    place = args.directory.absolute()
    place.mkdir(parents=True, exist_ok=True)
    made = make_all()
    ended = threading.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda _number, _frame: ended.set())
    with Registry(place=place, port=args.port) as registry:
        serve_all(registry, place / "hosts.d", made)
        print(f"{len(made.images)} images on {registry.address}:")
        for name in sorted(made.images):
            print(f"  {name}")
        for name, reason in made.missing.items():
            print(f"  {name}: left out: {reason}")
        suite, skip = "critest", " \\\n      --ginkgo.skip 'public image with digest'"
        if args.critest:
            digest = made.images[f"{STAGING}/test-image-digest:latest"].digest
            copy = place / "critest"
            copy.write_bytes(with_own_digest(args.critest.read_bytes(), digest))
            copy.chmod(0o755)
            suite, skip = str(copy), ""
        print(
            "run the server and the suite:\n"
            f"  polypod serve --listen unix:///SOCKET --set images.hosts_dir={place}/hosts.d\n"
            f"  {suite} --runtime-endpoint unix:///SOCKET --image-endpoint unix:///SOCKET{skip}"
        )
        sys.stdout.flush()
        ended.wait()


if __name__ == "__main__":
    main()
