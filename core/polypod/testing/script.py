"""The shell language of the simulator, its grammar: a small part of POSIX sh, enough for tests.

::

    list    := and_or ((';' | '&' | newline) and_or)*
    and_or  := command (('&&' | '||') command)*
    command := 'while' list 'do' list 'done' | 'if' list 'then' list ['else' list] 'fi' | simple
    simple  := (NAME=word)* word* (('>' | '>>' | '<' | '2>' | '>&2' | '2>&1') [word])*

Quotes, ``$NAME``, ``${NAME}``, ``$$``, ``$?``. No pipes, no substitution, no globs, no functions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_OPERATORS = ("2>&1", "&&", "||", ">&2", "1>&2", ">>", "2>", ";", "&", "\n", ">", "<")
_REDIRECTIONS = {">", ">>", "<", "2>"}
_DUPLICATIONS = {">&2", "1>&2", "2>&1"}
_ENDS = {"do", "done", "then", "else", "fi"}
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")


class ScriptError(Exception):
    """A text that is not of this language."""


@dataclass(frozen=True, slots=True)
class Word:
    """Pieces of text, each with: may ``$`` be expanded in it?"""

    pieces: tuple[tuple[str, bool], ...]

    @property
    def literal(self) -> str:
        """The text as written, without quotes."""
        return "".join(text for text, _ in self.pieces)

    @property
    def bare(self) -> bool:
        """No quotes at all: only such a word can be a keyword."""
        return all(expandable for _, expandable in self.pieces)


@dataclass(frozen=True, slots=True)
class Redirect:
    """``operator`` with the file that it names, where it names one."""

    operator: str
    target: Word | None = None


@dataclass(frozen=True, slots=True)
class Simple:
    """A program with its arguments."""

    assignments: tuple[tuple[str, Word], ...]
    words: tuple[Word, ...]
    redirects: tuple[Redirect, ...]


@dataclass(frozen=True, slots=True)
class While:
    """``while``."""

    condition: Script
    body: Script


@dataclass(frozen=True, slots=True)
class If:
    """``if``."""

    condition: Script
    then: Script
    otherwise: Script


Command = Simple | While | If


@dataclass(frozen=True, slots=True)
class AndOr:
    """Commands; each but the first with the connector before it."""

    commands: tuple[tuple[str, Command], ...]
    background: bool = False


@dataclass(frozen=True, slots=True)
class Script:
    """What is done in order."""

    steps: tuple[AndOr, ...]


Token = Word | str


def tokens(text: str) -> list[Token]:
    """Cut a text into words and operators."""
    found: list[Token] = []
    place = 0
    while place < len(text):
        if text[place] in " \t":
            place += 1
            continue
        operator = next((each for each in _OPERATORS if text.startswith(each, place)), None)
        if operator is not None:
            found.append(operator)
            place += len(operator)
            continue
        word, place = _word(text, place)
        found.append(word)
    return found


def _word(text: str, place: int) -> tuple[Word, int]:
    pieces: list[tuple[str, bool]] = []
    while place < len(text) and text[place] not in " \t;&|<>\n":
        char = text[place]
        if char in "'\"":
            end = text.find(char, place + 1)
            if end < 0:
                raise ScriptError(f"a {char} is not closed")
            pieces.append((text[place + 1 : end], char == '"'))
            if char == '"':
                pieces.append(("", False))
            place = end + 1
        elif char == "\\":
            pieces.append((text[place + 1 : place + 2], False))
            place += 2
        else:
            pieces.append((char, True))
            place += 1
    if not pieces:
        raise ScriptError(f"{text[place]!r} is not understood")
    return Word(_joined(pieces)), place


def _joined(pieces: list[tuple[str, bool]]) -> tuple[tuple[str, bool], ...]:
    joined: list[tuple[str, bool]] = []
    for text, expandable in pieces:
        if joined and joined[-1][1] is expandable:
            joined[-1] = (joined[-1][0] + text, expandable)
        else:
            joined.append((text, expandable))
    return tuple(joined)


def parse(text: str) -> Script:
    """Read a script.

    Raises:
        ScriptError: it is not of this language.
    """
    parser = _Parser(tokens(text))
    script = parser.script()
    if parser.peek() is not None:
        raise ScriptError(f"{parser.shown()} is unexpected")
    return script


class _Parser:
    def __init__(self, found: list[Token]) -> None:
        self._tokens = found
        self._place = 0

    def peek(self) -> Token | None:
        return self._tokens[self._place] if self._place < len(self._tokens) else None

    def shown(self) -> str:
        token = self.peek()
        return (
            "the end" if token is None else repr(token if isinstance(token, str) else token.literal)
        )

    def _keyword(self) -> str:
        token = self.peek()
        return token.literal if isinstance(token, Word) and token.bare else ""

    def _expect(self, keyword: str) -> None:
        if self._keyword() != keyword:
            raise ScriptError(f"{keyword!r} is missing before {self.shown()}")
        self._place += 1

    def _take(self, *operators: str) -> str:
        token = self.peek()
        if isinstance(token, str) and token in operators:
            self._place += 1
            return token
        return ""

    def script(self) -> Script:
        steps: list[AndOr] = []
        while True:
            while self._take(";", "\n"):
                continue
            if self.peek() is None or self._keyword() in _ENDS:
                return Script(tuple(steps))
            steps.append(self._and_or())

    def _and_or(self) -> AndOr:
        commands = [("", self._command())]
        while connector := self._take("&&", "||"):
            commands.append((connector, self._command()))
        return AndOr(tuple(commands), background=bool(self._take("&")))

    def _command(self) -> Command:
        if self._keyword() == "while":
            self._place += 1
            condition = self.script()
            self._expect("do")
            body = self.script()
            self._expect("done")
            return While(condition, body)
        if self._keyword() == "if":
            return self._if()
        return self._simple()

    def _if(self) -> If:
        self._place += 1
        condition = self.script()
        self._expect("then")
        then = self.script()
        otherwise = Script(())
        if self._keyword() == "else":
            self._place += 1
            otherwise = self.script()
        self._expect("fi")
        return If(condition, then, otherwise)

    def _simple(self) -> Simple:
        assignments: list[tuple[str, Word]] = []
        words: list[Word] = []
        redirects: list[Redirect] = []
        while True:
            token = self.peek()
            if isinstance(token, Word):
                self._place += 1
                assigned = None if words else _assignment(token)
                if assigned is not None:
                    assignments.append(assigned)
                else:
                    words.append(token)
            elif token in _DUPLICATIONS:
                self._place += 1
                redirects.append(Redirect(str(token)))
            elif token in _REDIRECTIONS:
                self._place += 1
                redirects.append(Redirect(str(token), self._target()))
            elif words or assignments or redirects:
                return Simple(tuple(assignments), tuple(words), tuple(redirects))
            else:
                raise ScriptError(f"{self.shown()} is unexpected")

    def _target(self) -> Word:
        token = self.peek()
        if not isinstance(token, Word):
            raise ScriptError(f"a file's name is missing before {self.shown()}")
        self._place += 1
        return token


def _assignment(word: Word) -> tuple[str, Word] | None:
    first, expandable = word.pieces[0]
    if not expandable or not _ASSIGNMENT.match(first):
        return None
    name, _, rest = first.partition("=")
    return name, Word(((rest, True), *word.pieces[1:]))
