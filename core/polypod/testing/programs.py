"""The programs that exist inside the simulator. All are shell built-ins; none touches the host."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence

from polypod.testing.process import Exit, Process
from polypod.testing.shell import Program, Shell, signal_number

_FOREVER_S = 1e9
_BUSY_S = 0.01


async def _echo(shell: Shell, args: Sequence[str]) -> int:
    if args[:1] == ["-n"]:
        await shell.say(" ".join(args[1:]))
    else:
        await shell.say(" ".join(args) + "\n")
    return 0


async def _sleep(shell: Shell, args: Sequence[str]) -> int:
    try:
        seconds = _FOREVER_S if args[0] in {"inf", "infinity"} else float(args[0].rstrip("s"))
    except (ValueError, IndexError):
        await shell.complain(f"sleep: invalid number {' '.join(args)!r}")
        return 1
    await shell.process.sleep(seconds)
    return 0


async def _exit(shell: Shell, args: Sequence[str]) -> int:
    raise Exit(int(args[0]) if args and args[0].isdigit() else shell.status)


async def _cat(shell: Shell, args: Sequence[str]) -> int:
    names = [shell.path(name) for name in args] or ([shell.input] if shell.input else [])
    if not names:
        while data := await shell.process.read(65536):
            await shell.output.write(data)
        return 0
    code = 0
    for name in names:
        try:
            await shell.output.write(shell.process.group.files.read(name))
        except BrokenPipeError:
            raise
        except OSError as error:
            await shell.complain(f"cat: can't open '{name}': {error.strerror}")
            code = 1
    return code


async def _read(shell: Shell, args: Sequence[str]) -> int:
    line = bytearray()
    while (byte := await shell.process.read(1)) not in {b"", b"\n"}:
        line += byte
    if args:
        shell.process.env[args[0]] = line.decode(errors="surrogateescape")
    return 0 if byte else 1


async def _true(_shell: Shell, _args: Sequence[str]) -> int:
    return 0


async def _false(_shell: Shell, _args: Sequence[str]) -> int:
    return 1


async def _env(shell: Shell, _args: Sequence[str]) -> int:
    await shell.say("".join(f"{name}={value}\n" for name, value in shell.process.env.items()))
    return 0


async def _export(shell: Shell, args: Sequence[str]) -> int:
    for pair in args:
        name, equals, value = pair.partition("=")
        if equals:
            shell.process.env[name] = value
    return 0


async def _pwd(shell: Shell, _args: Sequence[str]) -> int:
    await shell.say(shell.process.cwd + "\n")
    return 0


async def _cd(shell: Shell, args: Sequence[str]) -> int:
    shell.process.cwd = shell.path(args[0] if args else "/")
    return 0


async def _hostname(shell: Shell, _args: Sequence[str]) -> int:
    await shell.say(shell.process.group.hostname + "\n")
    return 0


async def _id(shell: Shell, args: Sequence[str]) -> int:
    user = shell.process.start.user
    groups = " ".join(str(gid) for gid in (user.gid, *user.additional_gids))
    known = {"-u": str(user.uid), "-g": str(user.gid), "-G": groups}
    text = known.get(args[0] if args else "", f"uid={user.uid} gid={user.gid} groups={groups}")
    await shell.say(text + "\n")
    return 0


async def _tty(shell: Shell, _args: Sequence[str]) -> int:
    terminal = shell.process.streams.terminal
    await shell.say("/dev/pts/0\n" if terminal else "not a tty\n")
    return 0 if terminal else 1


async def _seq(shell: Shell, args: Sequence[str]) -> int:
    first, last = (1, int(args[0])) if len(args) == 1 else (int(args[0]), int(args[-1]))
    for begin in range(first, last + 1, 1000):
        end = min(begin + 1000, last + 1)
        await shell.say("".join(f"{number}\n" for number in range(begin, end)))
    return 0


async def _ls(shell: Shell, args: Sequence[str]) -> int:
    path = shell.path(args[0] if args else ".")
    try:
        names = shell.process.group.files.names(path)
    except OSError as error:
        await shell.complain(f"ls: {path}: {error.strerror}")
        return 1
    await shell.say("".join(f"{name}\n" for name in names))
    return 0


async def _test(shell: Shell, args: Sequence[str]) -> int:
    words = [word for word in args if word != "]"]
    match words:
        case ["-e" | "-f", name]:
            holds = shell.process.group.files.exists(shell.path(name))
        case ["-n", text]:
            holds = bool(text)
        case ["-z", text]:
            holds = not text
        case [left, "=", right]:
            holds = left == right
        case [left, "!=", right]:
            holds = left != right
        case _:
            await shell.complain(f"test: {' '.join(words)}: not understood")
            return 2
    return 0 if holds else 1


async def _kill(shell: Shell, args: Sequence[str]) -> int:
    name = args[0][1:] if args and args[0].startswith("-") else "TERM"
    pids = args[1:] if args and args[0].startswith("-") else args
    try:
        number = signal_number(name)
        wanted = {int(pid) for pid in pids}
    except ValueError as error:
        await shell.complain(f"kill: {error}")
        return 1
    found = [p for p in shell.process.group.processes if p.pid in wanted]
    for process in found:
        process.deliver(number)
    await asyncio.sleep(0)  # where it was ourselves, this is the end
    return 0 if len(found) == len(wanted) else 1


async def _wait(shell: Shell, _args: Sequence[str]) -> int:
    """Wait for all children, or until a trapped signal comes."""
    process = shell.process
    while not process.pending:
        running = [child for child in process.children if child.status is None]
        if not running:
            return 0
        process.woken.clear()
        waits = [asyncio.ensure_future(running[0].ended.wait())]
        waits.append(asyncio.ensure_future(process.woken.wait()))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()
    return 128


async def _trap(shell: Shell, args: Sequence[str]) -> int:
    action, *names = args
    try:
        numbers = [signal_number(name) for name in names]
    except ValueError as error:
        await shell.complain(f"trap: {error}")
        return 1
    for number in numbers:
        if action == "-":
            shell.process.traps.pop(number, None)
        else:
            shell.process.traps[number] = action
    return 0


async def _spin(shell: Shell, args: Sequence[str]) -> int:
    """Use one cpu: ``spin [SECONDS]``."""
    left = float(args[0]) if args else _FOREVER_S
    while left > 0:
        await shell.process.burn(min(_BUSY_S, left))
        left -= _BUSY_S
    return 0


async def _eat(shell: Shell, args: Sequence[str]) -> int:
    """Take memory and keep it: ``eat BYTES``; beyond the limit the container is OOM-killed."""
    shell.process.group.charge(shell.process, int(args[0]))
    await asyncio.sleep(0)
    return 0


async def _oom(shell: Shell, _args: Sequence[str]) -> int:
    """Be OOM-killed."""
    shell.process.group.run_out()
    await asyncio.sleep(0)
    return 1


async def _ignore_term(shell: Shell, _args: Sequence[str]) -> int:
    """Ignore SIGTERM and run until SIGKILL."""
    shell.process.traps[signal_number("TERM")] = ""
    await shell.process.sleep(_FOREVER_S)
    return 0


async def _sh(shell: Shell, args: Sequence[str]) -> int:
    if args[:1] != ["-c"] or len(args) < 2:
        await shell.complain("sh: only sh -c SCRIPT is known here")
        return 2
    return await shell.text(args[1])


PROGRAMS: Mapping[str, Program] = {
    ":": _true,
    "[": _test,
    "busybox": lambda shell, args: shell.run(args or ["false"]),
    "cat": _cat,
    "cd": _cd,
    "eat": _eat,
    "echo": _echo,
    "env": _env,
    "exit": _exit,
    "export": _export,
    "false": _false,
    "hostname": _hostname,
    "id": _id,
    "ignore-term": _ignore_term,
    "kill": _kill,
    "ls": _ls,
    "oom": _oom,
    "pwd": _pwd,
    "read": _read,
    "seq": _seq,
    "sh": _sh,
    "sleep": _sleep,
    "spin": _spin,
    "test": _test,
    "trap": _trap,
    "true": _true,
    "tty": _tty,
    "wait": _wait,
}


def why_not(args: Sequence[str]) -> str:
    """Return why the arguments cannot be executed, ``""`` if they can; in the words of the field."""
    if os.path.basename(args[0]) in PROGRAMS:
        return ""
    if "/" in args[0]:
        return f'exec: "{args[0]}": stat {args[0]}: no such file or directory'
    return f'exec: "{args[0]}": executable file not found in $PATH'


async def execute(process: Process) -> int:
    """Run a process' arguments; its exit code."""
    return await Shell(process, PROGRAMS).run(process.start.args)
