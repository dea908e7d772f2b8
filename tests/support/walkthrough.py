"""Follows a page of the documentation as a reader does: saves its files, runs its commands, compares their output.

A ``python`` block whose first line names a file, ``# shop.py``, is saved; with ``# shop.py, continued`` it is added to
that file. A ``console`` block holds commands after ``$``, each followed by its output. A line ``...`` stands for any
number of lines. Ids, times, hosts and ports of the page stand for others, each id for the same one throughout the page.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.support.terminal import Pty
from tests.support.waiting import eventually

#: Commands that run until they are interrupted. They are ready when the output on the page has appeared.
_SERVERS = re.compile(r"celery .*(?:worker|flower|bus (?:dev|tail|subscribe))\b|python loop.py")
#: Commands that only show something. A reader who is too early repeats them.
_VIEWS = re.compile(r"celery .*bus (?:trace|status|check|get|routes|groups|dead (?:list|show))\b")
#: For how long, in seconds.
_PATIENCE_S = 20
_BLOCK = re.compile(r"^( *)```(\w+)[^\n]*\n(.*?)^\1```", re.M | re.S)
_FILE = re.compile(r"(?:<\?php\n)?(?:#|//) (\S+\.\w+)(, continued)?\n")
_ID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|\b\d{13}-\d+\b"
#: What differs from run to run: anything of the same form may stand in its place.
_VARIES = {
    "id": _ID,
    "time": r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z",
    "clock": r"\d\d:\d\d:\d\d(?:[.,]\d+)?",
    "age": r"\b\d+s\b",
    "seconds": r"\d+\.\d+ ?s\b",
    "rate": r"\d+\.\d+/s",
    "port": r"(?<=//127\.0\.0\.1:)\d+|(?<=//localhost:)\d+",
    "host": r"(?<=@)[\w.-]+(?=:\d)",
    "process": r"(?<=:)\d+:[0-9a-f]{6}\b",
    "space": r" {2,}",
}
_VARYING = re.compile("|".join(f"(?P<{name}>{form})" for name, form in _VARIES.items()))
_ESCAPES = re.compile(r"\x1b(?:\[[\d;?]*[A-Za-z]|\][^\x07]*\x07)")


class Block(NamedTuple):
    """One code block of a page."""

    language: str
    text: str


class Command(NamedTuple):
    """One command of a ``console`` block, and the lines that follow it."""

    line: str
    output: list[str]


def blocks_of(page: str) -> Iterator[Block]:
    """Yield the code blocks of a page, without their indentation."""
    for indent, language, text in _BLOCK.findall(page):
        yield Block(language, re.sub(rf"^{indent}", "", text, flags=re.M))


def texts_of(page: str, language: str) -> list[str]:
    """Return the code blocks of a page that are in one language."""
    return [text for found, text in blocks_of(page) if found == language]


def commands_of(text: str) -> Iterator[Command]:
    """Yield the commands of a ``console`` block; a command that ends with a backslash goes on in the next line."""
    for part in re.split(r"^\$ ", text.replace("\\\n", ""), flags=re.M)[1:]:
        line, *output = part.rstrip("\n").split("\n")
        yield Command(line, output)


class Walkthrough:
    """One reader: a folder, the programs that are installed, and what the commands of the page have printed.

    Arguments:
        folder: Where the files are saved and the commands run.
        environment: Variables of the reader's shell.
        columns: Width of the reader's terminal.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], columns: int = 120) -> None:
        self.folder = folder
        self._environment = {**environment, "TERM": "dumb"}
        self._columns = columns
        self._servers: list[_Run] = []
        self._running: dict[str, _Run] = {}
        self._ids: dict[str, str] = {}

    def end(self) -> None:
        """Interrupt what is still running."""
        while self._running:
            self._running.popitem()[1].interrupt()
        self._servers.clear()

    def follow(self, page: str) -> None:
        """Do everything that *page* shows, from top to bottom.

        Raises:
            AssertionError: A command failed or printed something else.
        """
        self._ids.clear()
        for block in blocks_of(page):
            if block.language == "console":
                for command in commands_of(block.text):
                    self.run(command)
            else:
                self._save(block)

    def save_files(self, page: str) -> None:
        """Save the files of *page* without running its commands."""
        for block in blocks_of(page):
            self._save(block)

    def type(self, line: str, *output: str) -> None:
        """Run a command that is not on a page; a server is ready when it has printed *output*."""
        self.run(Command(line, list(output) or ["..."]))

    def _save(self, block: Block) -> None:
        if named := _FILE.match(block.text):
            name, continued = named.groups()
            with (self.folder / name).open("a" if continued else "w") as file:
                file.write(block.text)

    def run(self, command: Command) -> None:
        """Run a command and compare its output. A server goes on running until it is started again, or to the end.

        Raises:
            AssertionError: It failed, or printed something else.
        """
        line = re.sub(_ID, lambda found: self._ids.get(found[0], found[0]), command.line)
        if _SERVERS.search(line):
            if line in self._running:  # as a reader does after a change of the code
                self._running.pop(line).interrupt()
            server = self._running[line] = self._start(line)
            self._servers.append(server)
            with_what = "\n".join(command.output)
            eventually(
                lambda: self._matches(command.output, server.lines, whole=False) or server.ended,
                f"{line} prints\n{with_what}",
                60,
            )
            assert not server.ended, f"{line} ended:\n{server.text}"
        elif _VIEWS.search(line):
            deadline = time.monotonic() + _PATIENCE_S
            while (problem := self._problem_of(line, command.output)) and time.monotonic() < deadline:
                continue  # each attempt takes a second
            assert not problem, problem
        else:
            problem = self._problem_of(line, command.output)
            assert not problem, problem

    def _problem_of(self, line: str, output: list[str]) -> str:
        """Run a command to its end; return how it differs from the page, or nothing."""
        run = self._start(line)
        status = run.wait()
        if status != 0:
            return f"{line} ended with {status}:\n{run.text}"
        expected = "\n".join(output)
        matches = self._matches(output, run.lines, whole=True)
        return "" if matches else f"{line} printed\n{run.text}\nand not\n{expected}"

    def _start(self, line: str) -> _Run:
        return _Run(line, self.folder, self._environment, self._columns)

    def sees(self, *texts: str) -> None:
        """Wait until the servers that are running have printed all of *texts*, the effects of handlers."""
        for text in texts:
            eventually(lambda text=text: text in self._printed(), f"{text!r} in {self._printed()}")

    def _printed(self) -> str:
        return "\n".join(run.text for run in self._servers)

    def _matches(self, expected: list[str], actual: list[str], *, whole: bool) -> bool:
        """Compare lines; *whole*: nothing may come before, between or after them but where ``...`` stands."""
        between = "" if whole else r"(?:.*\n)*?"
        groups: dict[str, str] = {}
        pattern = between
        for line in expected:
            pattern += r"(?:.*\n)*?" if line.strip() == "..." else self._pattern(line, groups) + r" *\n" + between
        pattern += "" if whole else r"(?:.*\n)*"
        found = re.fullmatch(pattern, "".join(f"{line}\n" for line in actual))
        if found is not None:
            self._ids |= {documented: found[name] for name, documented in groups.items()}
        return found is not None

    def _pattern(self, line: str, groups: dict[str, str]) -> str:
        parts, end = [], 0
        for varying in _VARYING.finditer(line.rstrip()):
            parts.append(re.escape(line[end : varying.start()]))
            kind, text = str(varying.lastgroup), varying[0]
            known = next((name for name, documented in groups.items() if documented == text), None)
            if kind != "id":
                parts.append(f"(?:{_VARIES[kind]})")
            elif text in self._ids:
                parts.append(re.escape(self._ids[text]))
            elif known:
                parts.append(f"(?P={known})")
            else:
                name = f"id{len(groups)}"
                groups[name] = text
                parts.append(f"(?P<{name}>{_ID})")
            end = varying.end()
        return "".join([*parts, re.escape(line[end:].rstrip())])


class _Run:
    """A command that runs in a terminal."""

    def __init__(self, line: str, folder: Path, environment: Mapping[str, str], columns: int) -> None:
        self._pty = Pty(50, columns)
        ends = dict.fromkeys(("stdin", "stdout", "stderr"), self._pty.slave)
        command = ["/bin/sh", "-c", line]
        self._process = subprocess.Popen(command, cwd=folder, env=dict(environment), start_new_session=True, **ends)
        self._pty.started()

    @property
    def text(self) -> str:
        return _ESCAPES.sub("", self._pty.text).replace("\r\n", "\n")

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self) -> int:
        try:
            status = self._process.wait(60)
        except subprocess.TimeoutExpired:
            self.interrupt()
            raise
        self._pty.close()
        return status

    def interrupt(self) -> None:
        """End it as Ctrl-C does, or kill it."""
        if not self.ended:
            os.killpg(self._process.pid, signal.SIGINT)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._pty.close()
