"""The command line of `explain`, which is loaded when it is used: other commands do not pay for HTTP."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import json
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final

from polypod.plugin.errors import InvalidArgument
from polypod.plugin.requests import Auth
from polypod_image.registry.settings import parse

CONFIG: Final = Path("/etc/polypod/config.toml")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("reference", metavar="IMAGE")
    parser.add_argument(
        "--config", type=Path, help=f"read images.hosts_dir here (default: {CONFIG}, if it exists)"
    )
    parser.add_argument("--hosts-dir", help="the tree of HOST/hosts.toml, whatever --config says")
    parser.add_argument("--ask", action="store_true", help="ask each endpoint for the manifest")
    parser.add_argument("--username", "-u", default="", help="as whom; never shown")
    parser.add_argument(
        "--password-stdin", action="store_true", help="read the password from stdin"
    )
    parser.add_argument("--server-address", default="", metavar="HOST", help="of the credentials")
    parser.add_argument("--json", action="store_true", help="JSON instead of text")


def run(args: argparse.Namespace) -> int:
    """Explain; the exit code is 1 if ``--ask`` found no endpoint that has the image."""
    from polypod_image.registry.explain import explain, shown

    options = parse(_table(args))
    auth = None
    if args.username:
        password = ""
        if args.password_stdin:
            password = sys.stdin.readline().rstrip("\n")
        elif args.ask:
            password = getpass.getpass()
        auth = Auth(username=args.username, password=password, server_address=args.server_address)
    found, has_it = asyncio.run(explain(args.reference, options, auth, ask=args.ask))
    if args.json:
        sys.stdout.write(json.dumps(asdict(found), indent=2, sort_keys=True) + "\n")
    else:
        sys.stdout.write(shown(found))
    return 0 if has_it or not args.ask else 1


def _table(args: argparse.Namespace) -> Mapping[str, object]:
    """Return ``[images]`` of the configuration, as far as it is ours."""
    path = args.config or CONFIG
    table: dict[str, object] = {}
    if args.config or path.exists():
        try:
            tree = tomllib.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InvalidArgument(f"{path}: {error}") from error
        images = tree.get("images", {})
        table = dict(images) if isinstance(images, dict) else {}
    if args.hosts_dir:
        table["hosts_dir"] = str(Path(args.hosts_dir).absolute())
    return table
