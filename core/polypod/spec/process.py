"""What a container executes: arguments, environment, working directory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from polypod.plugin.errors import InvalidArgument
from polypod.plugin.images import ImageConfig
from polypod.plugin.requests import ContainerConfig
from polypod.spec.paths import container_path

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def process_args(config: ContainerConfig, image: ImageConfig) -> tuple[str, ...]:
    """Return the argument vector by Kubernetes' rule.

    ``command`` replaces the entrypoint *and* drops the image's cmd; ``args`` alone keep the entrypoint.

    Raises:
        InvalidArgument: nothing is left to execute, or a string holds a NUL.

    Spec:
        kubernetes/cri-api api.proto, ContainerConfig.command and .args.
    """
    if config.command:
        args = (*config.command, *config.args)
    elif config.args:
        args = (*image.entrypoint, *config.args)
    else:
        args = (*image.entrypoint, *image.cmd)
    if not args or not args[0]:
        raise InvalidArgument(
            f"container {config.metadata.name}: no command: neither the request nor image "
            f"{config.image.image} names a program; set command"
        )
    for item in args:
        if "\0" in item:
            raise InvalidArgument(f"command or args: {item!r} holds a NUL character")
    return args


def environment(
    config: ContainerConfig, image: ImageConfig, *, hostname: str, home: str
) -> tuple[str, ...]:
    """Return the environment: defaults, then the image's, then the request's; the last value wins.

    Args:
        config: its values are bytes and stay so (surrogateescape).
        image: entries without ``=`` name nothing and are left out.
        hostname: value of ``HOSTNAME``.
        home: value of ``HOME``.

    Raises:
        InvalidArgument: a name is empty or holds ``=``; a NUL is in a name or value.
    """
    merged = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if config.tty:
        merged["TERM"] = "xterm"
    merged["HOME"] = home
    merged.update(_image_env(image.env))
    for name, value in config.envs:
        merged[_checked_name(name)] = value.decode(errors="surrogateescape")
    for name, text in merged.items():
        if "\0" in name or "\0" in text:
            raise InvalidArgument(f"envs: {name!r} or its value holds a NUL character")
    return tuple(f"{name}={value}" for name, value in merged.items())


def working_directory(config: ContainerConfig, image: ImageConfig) -> str:
    """Return the request's directory, else the image's, else ``/``; it is made if missing.

    Raises:
        InvalidArgument: it climbs above the root (E19).
    """
    if config.working_dir:
        return container_path(config.working_dir, "working_dir")
    if image.working_dir:
        return container_path(image.working_dir, "the image's WorkingDir")
    return "/"


def _image_env(entries: Iterable[str]) -> Iterable[tuple[str, str]]:
    for entry in entries:
        name, equals, value = entry.partition("=")
        if name and equals:
            yield name, value


def _checked_name(name: str) -> str:
    if not name or "=" in name or "\0" in name:
        raise InvalidArgument(f"envs: {name!r} is no name of a variable: empty, '=' or NUL in it")
    return name
