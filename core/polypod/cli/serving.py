"""serve, down, plugins, doctor, config: commands about the server itself.

What they need of the server is imported when they run: `polypod ps` shall not pay for it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from polypod.cli.command import Command, Usage, emit, emit_json, json_flag, table, with_client
from polypod.client import CriClient

DEFAULT_CONFIG = Path("/etc/polypod/config.toml")


def _config_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        "-c",
        type=Path,
        help=f"configuration file (default: {DEFAULT_CONFIG} if it exists)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override one key, such as server.root=/tmp/p",
    )


def _place_flags(parser: argparse.ArgumentParser) -> None:
    _config_flags(parser)
    for name, help_ in (
        ("root", "directory of what survives a reboot; short for --set server.root=DIR"),
        ("state", "directory of what dies with the boot; short for --set server.state=DIR"),
    ):
        parser.add_argument(f"--{name}", metavar="DIR", help=help_)


def _serve_flags(parser: argparse.ArgumentParser) -> None:
    _place_flags(parser)
    parser.add_argument(
        "--listen",
        metavar="unix:///PATH",
        help="where the CRI socket is; short for --set server.listen=…",
    )


def source(args: argparse.Namespace) -> Any:  # noqa: ANN401 - polypod.config.Source, imported late
    """Return where the configuration is from: the file, its drop-ins, --set, the flags of their own."""
    from polypod import config, config_files

    path = args.config or (DEFAULT_CONFIG if config_files.present(DEFAULT_CONFIG) else None)
    overrides = list(args.set)
    for name in ("listen", "root", "state"):
        value = getattr(args, name, None)
        if value is not None:
            text = value if name == "listen" else str(Path(value).absolute())
            overrides.append(f"server.{name}={json.dumps(text)}")
    return config.Source(path, tuple(overrides))


def loaded(args: argparse.Namespace) -> Any:  # noqa: ANN401 - polypod.config.Config, imported late
    """Return the effective configuration."""
    return source(args).load()


def serve(args: argparse.Namespace) -> int:
    """Run the server in the foreground."""
    return int(import_module("polypod.server").serve(source(args)))


def down(args: argparse.Namespace) -> int:
    """End everything that a server left running."""
    config = loaded(args)
    server = import_module("polypod.server")
    return int(server.down(Path(config.server.root), Path(config.server.state)))


def plugins(args: argparse.Namespace) -> int:
    """List plugins and what they offer, unusable ones with the reason."""
    rows = [
        tuple(map(str, row)) for row in import_module("polypod.registry").overview(loaded(args))
    ]
    if args.running:
        rows += _observed(_verbose(args))
    columns = ("PLUGIN", "KIND", "NAME", "STATE")
    if args.json:
        emit_json([dict(zip(map(str.lower, columns), row, strict=True)) for row in rows])
    else:
        table(columns, rows)
    return 0


def doctor(args: argparse.Namespace) -> int:
    """Probe this host; 1 if something needed is missing."""
    found = [tuple(map(str, row)) for row in import_module("polypod.doctor").report()]
    if args.json:
        emit_json([list(row) for row in found])
    else:
        table(("WHAT", "STATE", "WHAT TO DO"), found)
    return int(any(row[1] == "missing" for row in found))


def config_default(_args: argparse.Namespace) -> int:
    """Print the default configuration."""
    from polypod import config

    emit(config.default_text())
    return 0


def config_check(args: argparse.Namespace) -> int:
    """Check a file."""
    from polypod import config

    problems = config.check(args.file)
    for problem in problems:
        emit(problem)
    if not problems:
        emit(f"{args.file}: good")
    return int(bool(problems))


def config_show(args: argparse.Namespace) -> int:
    """Print the effective configuration and where each value comes from."""
    from polypod import config

    reload: Mapping[str, Any] = {}
    if args.running:
        rows, reload = _of_running(args)
    else:
        rows = config.show(loaded(args))
    if args.json:
        emit_json({key: {"value": value, "origin": origin} for key, value, origin in rows})
    else:
        table(("KEY", "VALUE", "FROM"), rows)
        _tell_reload(reload)
    return 0


def _of_running(args: argparse.Namespace) -> tuple[list[tuple[str, str, str]], Mapping[str, Any]]:
    """Return what a server says that is in force, and what became of the last reading of its files."""
    info = _verbose(args)
    if "configuration" not in info:
        raise Usage("the server behind this endpoint does not tell its configuration")
    rows = [(key, each["value"], each["origin"]) for key, each in info["configuration"].items()]
    return sorted(rows), info["reload"]


def _verbose(args: argparse.Namespace) -> Mapping[str, Any]:
    """Return what a running server says of itself."""

    async def ask(cri: CriClient) -> Mapping[str, str]:
        return dict((await cri.status(verbose=True)).info)

    info: Mapping[str, Any] = json.loads(with_client(args, ask).get("info", "{}"))
    return info


def _observed(info: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return rows of what observers say: the plugins that plugins have, such as those of NRI."""
    return [
        (
            name,
            f"{name} plugin",
            each["name"],
            ": ".join(filter(None, (each["state"], each["reason"]))),
        )
        for name, report in sorted(info.get("observers", {}).items())
        for each in report.get("plugins", ())
    ]


def _tell_reload(reload: Mapping[str, Any]) -> None:
    """Print what the last reading of the files could not bring into force."""
    if reload.get("error"):
        emit(f"\nrefused, nothing was changed: {reload['error']}")
    if reload.get("needsRestart"):
        emit(f"\nneeds a restart: {', '.join(reload['needsRestart'])}")
    for name, why in reload.get("waiting", {}).items():
        emit(f"\nhandler {name}: {why}")


def _configured(parser: argparse.ArgumentParser) -> None:
    _shown(parser)
    parser.add_argument(
        "--running",
        action="store_true",
        help="ask the server (--endpoint) what is in force, and what waits for a restart",
    )


def _listed(parser: argparse.ArgumentParser) -> None:
    _shown(parser)
    parser.add_argument(
        "--running",
        action="store_true",
        help="ask the server (--endpoint) too: NRI plugins, and why one was closed",
    )


def _shown(parser: argparse.ArgumentParser) -> None:
    _config_flags(parser)
    json_flag(parser)


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    sub = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in (
        Command("default", "print the default, with comments", lambda _p: None, config_default),
        Command(
            "check",
            "say what is wrong with a file",
            lambda p: (p.add_argument("file", type=Path), None)[1],
            config_check,
        ),
        Command("show", "print what is in force, and from where", _configured, config_show),
    ):
        command.add_to(sub)


COMMANDS = (
    Command(
        "serve",
        "run the CRI server in the foreground",
        _serve_flags,
        serve,
        "  polypod serve\n"
        "  polypod serve --listen unix:///tmp/p/cri.sock --root /tmp/p/root --state /tmp/p/state\n"
        "  polypod serve --set handlers.sim.type=simulator --set server.default_handler=sim",
    ),
    Command(
        "down",
        "stop and remove all that a server made, and end its processes",
        _place_flags,
        down,
        "  polypod down\n  polypod down --root /tmp/p/root --state /tmp/p/state",
    ),
    Command(
        "plugins",
        "list plugins and what they offer, unusable ones with the reason",
        _listed,
        plugins,
        "  polypod plugins\n  polypod plugins --set plugins.disabled='[\"vm\"]'\n"
        "  polypod plugins --running",
    ),
    Command(
        "doctor",
        "say what this host can and cannot do for pods, and what to do about it",
        json_flag,
        doctor,
        "  polypod doctor\n\n"
        "states: ok; limited (pods run, something they may ask for does not); absent (not needed);\n"
        "missing (no real pod runs; the exit status is 1 then)",
    ),
    Command(
        "config",
        "print, check and explain the configuration",
        _config_arguments,
        lambda _args: 2,
        "  polypod config default > /etc/polypod/config.toml\n"
        "  polypod config check /etc/polypod/config.toml\n"
        "  polypod config show --set server.root=/tmp/p\n"
        "  polypod config show --running\n\n"
        "files: the main one, then the drop-ins beside it (config.toml: config.d/*.toml) in the order of\n"
        "their names; a later one wins key by key. A running server reads them again when one changes,\n"
        "and at SIGHUP.",
    ),
)
