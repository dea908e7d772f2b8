"""The services of Compose files, run without Docker, with their commands, configuration and environment.

Each service has its own address on the loopback interface, which replaces its name, and the ports of the files. Its
volumes are folders.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from tests.support import ROOT
from tests.support.processes import Processes
from tests.support.requirements import program
from tests.support.waiting import eventually

PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
#: Added to the configuration of each Redis: it must not reach other servers of this machine, and replication need not
#: wait.
_HERE = "\nbind {address}\nbind-source-addr {address}\nrepl-diskless-sync-delay 0\n"


class Site:
    """The services of docker-compose.yml and of some overrides.

    Arguments:
        folder: Receives a copy of the files that a user has, and everything that they produce.
        overrides: Names of files in deploy/compose.
    """

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.folder = folder
        for name in ("docker-compose.yml", "deploy/compose"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            copy: Any = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, folder / name)
        files = ["docker-compose.yml", *(f"deploy/compose/{name}" for name in overrides)]
        self._settings = {"COMPOSE_FILE": ":".join(files)}
        self._network = f"127.{1 + secrets.randbelow(254)}.{secrets.randbelow(256)}"
        self.processes = Processes(folder, {"C_FORCE_ROOT": "1", "PATH": PATH, "PYTHONWARNINGS": "ignore"})
        self.services: dict[str, Any] = {}
        #: Replacements in the texts of services, made before names are replaced by addresses.
        self.instead: dict[str, str] = {}
        self._numbers: dict[str, int] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def load(self, **values: str) -> None:
        """Read the files as Compose does, with *values* in .env."""
        with (self.folder / ".env").open("a") as file:
            file.writelines(f"{name}={value}\n" for name, value in (self._settings | values).items())
        done = subprocess.run(
            [program("docker-compose"), "config"],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=40,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        self.services = yaml.safe_load(done.stdout.replace("$$", "$"))["services"]

    def prepare(self, script: str, *servers: str) -> None:
        """Run a script that creates secrets, also for the addresses of *servers*."""
        program("openssl")
        done = subprocess.run(
            ["sh", script, *map(self.address, servers)], cwd=self.folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def values(self) -> dict[str, str]:
        """Return the variables in .env."""
        return dict(line.split("=", 1) for line in (self.folder / ".env").read_text().splitlines())

    def address(self, name: str) -> str:
        """Return the address of a service."""
        return f"{self._network}.{self._numbers.setdefault(name, len(self._numbers) + 1)}"

    def environment(self, name: str) -> dict[str, str]:
        """Return the environment of a service."""
        service = self.services[name]
        found = {key: self.here(name, value) for key, value in service.get("environment", {}).items()}
        return found | {"HOSTNAME": self.address(name) if "hostname" in service else socket.gethostname()}

    def up(self, *names: str) -> None:
        """Start services and their dependencies, in the order and under the conditions of the files."""
        for name in names:
            if name in self._running:
                continue
            needed = self.services[name].get("depends_on", {})
            self.up(*needed)
            for other, how in needed.items():
                if how["condition"] == "service_healthy":
                    eventually(lambda one=other: self.healthy(one), f"{other} is healthy; {self.log(other)}", 30)
            process = self.start(name)
            if self.services[name].get("restart") == "no":
                assert process.wait(30) == 0, self.log(name)

    def mount(self, name: str) -> None:
        """Update the files of a service to their current contents."""
        for source, target in self._mounts(name).items():
            self._mount(name, source, target)

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Start one service with its existing data."""
        self.mount(name)
        service = self.services[name]
        words = [self.here(name, word) for word in [*service.get("entrypoint", []), *service["command"]]]
        if words[0] == "redis-server" and len(words) > 2:
            words += ["--bind", self.address(name), "--dir", str(self._volume(name, "/data"))]
        self._running[name] = self.processes.start(*words, name=name, **self.environment(name))
        return self._running[name]

    def healthy(self, name: str) -> bool:
        """Return whether the health check of a service passes."""
        kind, *words = [self.here(name, word) for word in self.services[name]["healthcheck"]["test"]]
        client = f"redis-cli -h {self.address(name)}"
        if kind == "CMD-SHELL":
            words = ["sh", "-c", words[0]]
        elif words[0] == "redis-cli":
            words[:1] = client.split()
        environment = os.environ | self.processes.environment | self.environment(name)
        done = subprocess.run(
            words,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=40,
            check=False,
        )
        return done.returncode == 0

    def run(self, name: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the environment of a service, like ``docker compose exec``."""
        self.mount(name)
        environment = os.environ | self.processes.environment | self.environment(name)
        words = [self.here(name, word) for word in command]
        return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=40, check=False)

    def presented(self, name: str) -> str:
        """Return the certificate that a service presents to clients."""
        return ssl.get_server_certificate((self.address(name), 6379))

    def log(self, name: str) -> str:
        file = self.folder / f"{name}.log"
        return file.read_text(errors="replace")[-2000:] if file.exists() else ""

    def end(self) -> None:
        self.processes.end()

    def _mounts(self, name: str) -> dict[str, str]:
        """Return the mounts of a service: their targets by source."""
        volumes = (volume.split(":") for volume in self.services[name].get("volumes", []))
        return {parts[0]: parts[1] for parts in volumes}

    def _volume(self, name: str, target: str) -> Path:
        source = next(source for source, at in self._mounts(name).items() if at == target)
        return self._place(name, source, target)

    def _place(self, name: str, source: str, target: str) -> Path:
        """Return the local path of a service's mount."""
        if source.startswith("/"):
            return self.folder / "containers" / name / target.strip("/").replace("/", "_")
        return self.folder / "volumes" / source

    def _mount(self, name: str, source: str, target: str) -> None:
        place = self._place(name, source, target)
        if not source.startswith("/"):
            place.mkdir(parents=True, exist_ok=True)
            return
        files = [Path(source)] if Path(source).is_file() else Path(source).iterdir()
        for file in files:
            copy = place if Path(source).is_file() else place / file.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            text = self.here(name, file.read_text())
            copy.write_text(text + _HERE.format(address=self.address(name)) if copy.suffix == ".conf" else text)

    def here(self, name: str, text: Any) -> str:
        """Return a text of a service with the folders and addresses of this machine."""
        text = str(text)
        for place, other in self.instead.items():
            text = text.replace(place, other)
        folders = {target: str(self._place(name, source, target)) for source, target in self._mounts(name).items()}
        if folders:
            text = re.sub(rf"({_any(folders)})(?![\w-])", lambda found: folders[found[1]], text)
        hosts = self._hosts()
        return re.sub(
            rf"(?:(?<=//)|(?<=[@,\s])|^)({_any(hosts)})(?=[:,/\s]|$)(?!://)",
            lambda found: hosts[found[1]],
            text,
            flags=re.M,
        )

    def _hosts(self) -> dict[str, str]:
        """Return the addresses of servers by name, and by fixed address if they have one."""
        servers = {
            name: one for name, one in self.services.items() if "build" not in one and one.get("restart") != "no"
        }
        found = {name: self.address(name) for name in servers}
        fixed = {one["networks"]["default"]["ipv4_address"]: name for name, one in servers.items() if "networks" in one}
        return found | {place: self.address(name) for place, name in fixed.items()}


def _any(texts: Iterable[str]) -> str:
    return "|".join(sorted(map(re.escape, texts), key=len, reverse=True))
