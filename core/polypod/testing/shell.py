"""The simulator's shell: runs the language of `polypod.testing.script`."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence

from polypod.testing.process import STEP_NS, Process
from polypod.testing.script import AndOr, Command, If, Script, ScriptError, Simple, Word, parse

Program = Callable[["Shell", Sequence[str]], Awaitable[int]]
"""Gets the shell of its process and its arguments without the name; returns the exit code."""

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+|[?$!]))")
_NESTING = {"sh", "busybox"}
_SPIN_S = 0.001
"""A loop that does nothing takes at least so long per round: the simulation must not burn real cpu."""


class Output:
    """Where a command's output goes: streams, or files named by redirections."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._files: dict[int, str] = {}
        self._same: dict[int, int] = {}

    def redirect(self, operator: str, path: str) -> None:
        """Apply one redirection to a file or between the two."""
        match operator:
            case ">&2" | "1>&2":
                self._same[1] = 2
            case "2>&1":
                self._same[2] = 1
            case _:
                stream = 2 if operator == "2>" else 1
                self._process.group.files.write(path, b"", append=operator == ">>")
                self._files[stream] = path

    async def write(self, data: bytes, stream: int = 1) -> None:
        """Write to stdout (1) or stderr (2)."""
        stream = self._same.get(stream, stream)
        path = self._files.get(stream)
        if path is not None:
            self._process.group.files.write(path, data, append=True)
        else:
            await self._process.write(data, error=stream == 2)


class Shell:
    """One process that runs commands. Programs run inside it: only ``&`` makes another process."""

    def __init__(self, process: Process, programs: Mapping[str, Program]) -> None:
        self.process = process
        self.programs = programs
        self.status = 0
        self.output = Output(process)
        self.input: str | None = None
        """The file that stdin is redirected from."""
        self._in_trap = False

    # Scripts

    async def text(self, text: str) -> int:
        """Run a script given as text."""
        try:
            script = parse(text)
        except ScriptError as error:
            await self.complain(f"sh: syntax error: {error}")
            return 2
        return await self.script(script)

    async def script(self, script: Script) -> int:
        """Run a script; returns the last status."""
        for step in script.steps:
            if step.background:
                self._background(step)
            else:
                await self.and_or(step)
        return self.status

    def _background(self, step: AndOr) -> None:
        async def body(process: Process) -> int:
            return await Shell(process, self.programs).and_or(step)

        self.process.fork().spawn(body)
        self.status = 0

    async def and_or(self, step: AndOr) -> int:
        """Run commands joined by ``&&`` and ``||``."""
        for connector, command in step.commands:
            if (connector == "&&" and self.status) or (connector == "||" and not self.status):
                continue
            self.status = await self._command(command)
            await self.traps()
        return self.status

    async def traps(self) -> None:
        """Run the actions of signals that came."""
        process = self.process
        while process.pending:
            process.woken.clear()
            self._in_trap = True
            try:
                await self.text(process.pending.pop(0))
            finally:
                self._in_trap = False

    async def _command(self, command: Command) -> int:
        if isinstance(command, Simple):
            return await self._simple(command)
        if isinstance(command, If):
            chosen = (
                command.then if await self.script(command.condition) == 0 else command.otherwise
            )
            self.status = 0
            return await self.script(chosen)
        code = 0
        while True:
            began = self.process.clock.monotonic()
            if await self.script(command.condition) != 0:
                return code
            code = await self.script(command.body)
            replayed = self.process.captured is not None
            if not replayed and self.process.clock.monotonic() - began < _SPIN_S / 2:
                await self.process.burn(_SPIN_S)

    async def _simple(self, command: Simple) -> int:
        """Run a simple command, unless it ran before the checkpoint that the process goes on from.

        What leads into another script is no step of its own: the commands in there are.
        """
        first = command.words[0].literal if command.words else ""
        if os.path.basename(first) in _NESTING or self._in_trap:
            return await self._simple_now(command)
        known = self.process.replay()
        if known is not None:
            return known
        await self.process.moving()
        status = await self._simple_now(command)
        await self.process.moving()
        self.process.journal.append(status & 0xFF)
        return status

    async def _simple_now(self, command: Simple) -> int:
        words = [self.expand(word) for word in command.words]
        for name, value in command.assignments:
            self.process.env[name] = self.expand(value)
        if not words:
            return 0
        before = self.output, self.input
        try:
            self.output = Output(self.process)
            for each in command.redirects:
                path = self.path(self.expand(each.target)) if each.target else ""
                if each.operator == "<":
                    self.input = path
                else:
                    self.output.redirect(each.operator, path)
            return await self.run(words)
        except OSError as error:
            if isinstance(error, BrokenPipeError):
                raise
            await self.complain(f"sh: {error.filename}: {error.strerror}")
            return 1
        finally:
            self.output, self.input = before

    async def run(self, words: Sequence[str]) -> int:
        """Run one program of the table."""
        program = self.programs.get(os.path.basename(words[0]))
        if program is None:
            await self.complain(f"sh: {words[0]}: not found")
            return 127
        self.process.cpu_ns += STEP_NS
        return await program(self, list(words[1:]))

    # For programs

    async def say(self, text: str) -> None:
        """Write to stdout; strings are in surrogateescape, so bytes survive."""
        await self.output.write(text.encode(errors="surrogateescape"))

    async def complain(self, text: str) -> None:
        """Write a line to stderr."""
        await self.output.write(f"{text}\n".encode(errors="surrogateescape"), 2)

    def path(self, name: str) -> str:
        """Return a path made absolute."""
        return os.path.normpath(os.path.join(self.process.cwd, name))

    def expand(self, word: Word) -> str:
        """Return a word's text with its variables replaced."""
        return "".join(
            _VARIABLE.sub(lambda m: self._variable(m[1] or m[2]), text) if expandable else text
            for text, expandable in word.pieces
        )

    def _variable(self, name: str) -> str:
        match name:
            case "?":
                return str(self.status)
            case "$":
                return str(self.process.pid)
            case "!":
                return str(self.process.children[-1].pid) if self.process.children else ""
            case _:
                return self.process.env.get(name, "")


def signal_number(name: str) -> int:
    """Return the number of ``9``, ``KILL`` or ``SIGKILL``. ValueError if there is none."""
    if name.isdigit():
        return int(name)
    try:
        return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"].value
    except KeyError:
        raise ValueError(f"no signal {name!r}") from None
