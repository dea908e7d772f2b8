"""A private RabbitMQ node for the tests, with its own ports, names, cookie and port mapper. It is removed entirely."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import amqp

from tests.support.ports import free_ports
from tests.support.servers.certificates import Certificates
from tests.support.waiting import eventually

_START_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 20.0
_REAP_TIMEOUT_S = 2.0
#: One scheduler that does not busy-wait while idle, because the tests share two cores with it.
_FRUGAL = "+S 1:1 +SDcpu 1:1 +SDio 1 +A 1 +sbwt none +sbwtdcpu none +sbwtdio none"

_TLS = """
listeners.ssl.1 = 127.0.0.1:{port}
ssl_options.cacertfile = {certificates.authority}
ssl_options.certfile = {certificates.server.certificate}
ssl_options.keyfile = {certificates.server.key}
"""

_CONFIG = """
listeners.tcp.1 = 127.0.0.1:{port}
log.console = true
log.file = false
log.console.level = warning
disk_free_limit.absolute = 1MB
collect_statistics_interval = 60000
"""


def find_programs() -> Path | None:
    """Return the folder of rabbitmq-server and rabbitmqctl, avoiding Debian's wrapper scripts, which switch users."""
    debian = Path("/usr/lib/rabbitmq/bin")
    if shutil.which("erl") and (debian / "rabbitmq-server").exists():
        return debian
    found = shutil.which("rabbitmq-server")
    return Path(found).parent if found else None


class RabbitNode:
    """A separate node on free ports of the loopback interface; its data is deleted with it.

    Arguments:
        programs: See :func:`find_programs`.
        certificates: For a second port, which uses TLS; without certificates there is no such port.
        login: Name and password of its user.
        configuration: Further lines of its configuration.
    """

    def __init__(
        self,
        programs: Path,
        certificates: Certificates | None = None,
        login: tuple[str, str] = ("guest", "guest"),
        configuration: str = "",
    ) -> None:
        self._programs = programs
        self._login = login
        self._home = tempfile.TemporaryDirectory(prefix="bridge-rabbit-")
        home = Path(self._home.name)
        self.port, self.tls_port, distribution_port, self._mapper_port = free_ports(4)
        self._name = f"bridge{self.port}@localhost"
        tls = _TLS.format(port=self.tls_port, certificates=certificates) if certificates else ""
        (home / "rabbitmq.conf").write_text(_CONFIG.format(port=self.port) + tls + configuration)
        (home / "enabled_plugins").write_text("[].")
        (home / "environment").write_text("")
        cookie = home / ".erlang.cookie"
        cookie.write_text(f"BRIDGE{self.port}")
        cookie.chmod(0o400)
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith("RABBITMQ_")} | {
            "HOME": str(home),
            "ERL_EPMD_PORT": str(self._mapper_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self._name,
            "RABBITMQ_DEFAULT_USER": login[0],
            "RABBITMQ_DEFAULT_PASS": login[1],
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "RABBITMQ_CONF_ENV_FILE": str(home / "environment"),
            "RABBITMQ_CONFIG_FILE": str(home / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(home / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(home / "data"),
            "RABBITMQ_LOG_BASE": str(home / "log"),
            "RABBITMQ_PID_FILE": str(home / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": f"{_FRUGAL} -kernel inet_dist_use_interface {{127,0,0,1}}",
            "LANG": "C.UTF-8",
        }
        self._mapper: subprocess.Popen[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen = self._alarmed = False
        self._virtual_hosts: list[str] = []

    @property
    def url(self) -> str:
        """Address of the default virtual host."""
        return f"amqp://{':'.join(self._login)}@127.0.0.1:{self.port}//"

    @property
    def pid(self) -> int:
        """Process id of the running node, not of the script that started it."""
        return int(Path(self._home.name, "pid").read_text())

    def start(self) -> Self:
        """Start the node with the data of its last run, and wait until it accepts connections."""
        log = Path(self._home.name, "node.log")
        Path(self._home.name, "pid").unlink(missing_ok=True)
        with log.open("ab") as output:
            if self._mapper is None:
                self._mapper = subprocess.Popen(["epmd", "-address", "127.0.0.1"], **self._options(output))
            self._process = subprocess.Popen([self._programs / "rabbitmq-server"], **self._options(output))
        try:
            self._wait_until_ready()
        except BaseException as error:
            self.kill()
            raise RuntimeError(f"rabbitmq-server did not start: {log.read_text(errors='replace')[-2000:]}") from error
        return self

    def stop(self) -> None:
        """Stop the node gracefully; its data is kept for the next start()."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT_S)
                self._process = None
                self._frozen = self._alarmed = False
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """Kill the node with SIGKILL, like a crash."""
        if self._process is None:
            return
        with suppress(OSError, ValueError):  # the node may have exited before it wrote its pid
            os.kill(self.pid, signal.SIGKILL)
        try:
            self._process.wait(_REAP_TIMEOUT_S)  # the script exits with the node, so no zombie remains
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None
        self._frozen = self._alarmed = False

    def freeze(self) -> None:
        """Stop the node with SIGSTOP: the system accepts connections, and the node does not respond."""
        os.kill(self.pid, signal.SIGSTOP)
        self._frozen = True
        # The signal takes effect when one of its threads is scheduled; until then, the other threads may still respond.
        threads = Path(f"/proc/{self.pid}/task")
        eventually(
            lambda: all("\nState:\tT" in path.read_text() for path in threads.glob("*/status")),
            "all threads of the node are stopped",
        )

    def thaw(self) -> None:
        """Resume a frozen node."""
        os.kill(self.pid, signal.SIGCONT)
        self._frozen = False

    def alarm(self, *, on: bool) -> None:
        """Raise or clear the memory alarm."""
        self._control("set_vm_memory_high_watermark", "0" if on else "0.4")
        self._alarmed = on

    def evaluate(self, expression: str) -> str:
        """Return the result of an Erlang expression that the node evaluates."""
        return self._control("eval", expression)

    def new_virtual_host(self) -> str:
        """Return the name of an unused virtual host. Several are created at a time, because a call takes a second."""
        if not self._virtual_hosts:
            self._virtual_hosts = [f"tests-{uuid.uuid4().hex[:12]}" for _ in range(6)]
            names = ", ".join(f'<<"{name}">>' for name in self._virtual_hosts)
            self.evaluate(
                '[begin rabbit_vhost:add(Name, <<"tests">>), rabbit_auth_backend_internal:set_permissions('
                f'<<"guest">>, Name, <<".*">>, <<".*">>, <<".*">>, <<"tests">>) end || Name <- [{names}]].'
            )
        return self._virtual_hosts.pop()

    def set_policy(self, virtual_host: str, queues: str, definition: str) -> None:
        """Apply a policy to the queues whose names match this regular expression."""
        self._control("set_policy", "-p", virtual_host, "test", queues, definition, "--apply-to", "queues")

    def diagnose(self, *command: str) -> str:
        """Return the output of ``rabbitmq-diagnostics``."""
        return self._control(*command, program="rabbitmq-diagnostics")

    def heal(self) -> None:
        """Start, resume or clear whatever a test left in a faulty state."""
        if self._frozen:
            self.thaw()
        if self._process is None:
            self.start()
        elif self._alarmed:
            self.alarm(on=False)

    def _control(self, *command: str, program: str = "rabbitmqctl") -> str:
        line = [self._programs / program, "--quiet", *command]
        done = subprocess.run(line, env=self._environment, capture_output=True, text=True, timeout=90, check=False)
        if done.returncode:
            raise RuntimeError(f"{program} {' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def connect(self) -> Any:
        """Return an open py-amqp connection."""
        connection = amqp.Connection(f"127.0.0.1:{self.port}", *self._login, connect_timeout=5)
        connection.connect()
        return connection

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill everything; the data is not needed any more."""
        self.kill()
        if self._mapper is not None:
            self._mapper.kill()
            self._mapper.wait()
        shutil.rmtree(self._home.name, ignore_errors=True)  # helper processes of the node may still be writing
        self._home.cleanup()

    def _options(self, output: Any) -> dict[str, Any]:
        return {
            "env": self._environment,
            "cwd": self._home.name,
            "stdin": subprocess.DEVNULL,
            "stdout": output,
            "stderr": subprocess.STDOUT,
            "start_new_session": True,
        }

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while True:
            try:
                self.connect().close()
                return
            except (OSError, amqp.AMQPError):
                if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
