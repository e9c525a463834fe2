"""Ray and Serve, started the way this project needs them, and stopped without a trace.

Ray Serve reads its switches when its processes start (and when ``ray.serve`` is imported), so
`prepare` must run before anything imports it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.ports import check_port, free_ports


class ClusterError(RuntimeError):
    """Ray or Serve cannot be started as asked; the message says why and what to change."""


#: HAProxy in front and user code on the replica's own loop: 20 times the default proxy's throughput.
_SWITCHES = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # A batch of large inputs is one message between deployments; Serve's default limit is 4 MiB.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(512 << 20),
    # gRPC calls that one connection may have in flight; HAProxy's default of 100 makes the rest wait.
    "RAY_SERVE_HAPROXY_H2_FE_MAX_CONCURRENT_STREAMS": "1000",
    "RAY_SERVE_HAPROXY_H2_BE_MAX_CONCURRENT_STREAMS": "1000",
    # At the default of 64 KiB a large tensor waits for the other side's word 16 times a MiB.
    "RAY_SERVE_HAPROXY_H2_FE_INITIAL_WINDOW_SIZE": str(1 << 20),
    "RAY_SERVE_HAPROXY_H2_BE_INITIAL_WINDOW_SIZE": str(1 << 20),
    # A head that trickles holds one of HAProxy's 4,096 connections, for ever without a limit. Serve's
    # template has the line but no variable for it, and writes this one into its place as it stands.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure\n    timeout http-request 10s",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
    "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "0.5",
    # An HAProxy that was replaced knows none of the new replicas, and keeps what is in flight until then: for
    # as long as its router has to end. With 5 s a change of the replicas cut those off who waited for the new
    # ones on a slow machine; with Serve's 120 s a client's next request was tried on a dead router.
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "10",
    # Ray runs its workers at nice 15 and its dashboard's agent at 0, which then takes a core from a model for
    # a tenth of a second at a time, several times a minute. Batch work yields by SCHED_IDLE instead.
    "RAY_worker_niceness": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
}


_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
#: Replicas have 10 s to end; a controller that died meanwhile would be waited for much longer.
_STOP_WITHIN_S = 20.0
#: Calls to Ray that did not come back in time.
_abandoned: list[threading.Thread] = []
#: A gRPC message, either way, may have twice the policy's limits.body, and at least this.
_MIN_GRPC_BYTES = 64 << 20
#: Ports of each kind for this instance's router replicas.
_RANGE = 100
_SINGLE = (
    "RAY_SERVE_HAPROXY_METRICS_PORT",
    "RAY_SERVE_HAPROXY_STATS_PORT",
    "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
    "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT",
)


def prepare(folder: Path, max_body_bytes: int = 0, taken: Collection[int] = ()) -> None:
    """Set the environment of a Ray that is to be started here; what the user has set stays.

    The ports that Serve opens beside the endpoint, and HAProxy's files (in ``folder``, whose path must be
    short: a Unix socket's name has 107 characters), are made this instance's own, so that two can run on one
    machine; ``taken`` are the ports of the endpoint. ``max_body_bytes`` is the largest request body; gRPC
    reads a whole message before anything here sees its size. Raises `ClusterError` where no ports are free.
    """
    # One row of its own for all of them: two that are drawn apart may be the same.
    try:
        http = free_ports(2 * _RANGE + len(_SINGLE), taken)
    except OSError as error:
        raise ClusterError(f"the ports beside the endpoint: {error}; end what listens there") from None
    grpc, single = http + _RANGE, http + 2 * _RANGE
    settings = _SWITCHES | {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(http),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(http + _RANGE - 1),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(grpc),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(grpc + _RANGE - 1),
    }
    ask_this_machine_directly()
    settings["RAY_SERVE_GRPC_MAX_MESSAGE_SIZE"] = str(max(_MIN_GRPC_BYTES, 2 * max_body_bytes))
    settings |= {name: str(single + place) for place, name in enumerate(_SINGLE)}
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def _own_addresses() -> list[str]:
    """The addresses that Ray's processes have for each other on this machine."""
    found = []
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("8.8.8.8", 80))  # sends nothing: it asks which address that way would begin at
        found.append(probe.getsockname()[0])
    with suppress(OSError):
        found.append(socket.gethostbyname(socket.gethostname()))
    return found


def has_proxy() -> bool:
    """Whether the environment names a proxy."""
    return any(os.environ.get(name) for name in (*_PROXIES, *map(str.upper, _PROXIES)))


def ask_this_machine_directly() -> None:
    """Add this machine to the hosts that are asked without the environment's proxy.

    For what runs in this process and in those that it starts: Ray's, Serve's, and the code of models.
    """
    if not has_proxy():
        return
    given = [os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    hosts = [host.strip() for host in ",".join(given).split(",") if host.strip()]
    if "*" not in hosts:
        hosts += ["127.0.0.1", "localhost", "::1", *_own_addresses()]
    # Some programs read the one, some the other, some both.
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys(hosts))


@dataclass(frozen=True, slots=True)
class Started:
    """A running Ray with Serve; ``dashboard_url`` is None where Ray's dashboard is off."""

    dashboard_url: str | None
    metrics_url: str | None
    own: bool


@contextmanager
def running(
    host: str,
    port: int,
    address: str | None = None,
    grpc_port: int | None = None,
    max_body_bytes: int = 0,
) -> Iterator[Started]:
    """Start Ray and Serve on ``host:port`` (or join the Ray at ``address``), and stop them at the end.

    ``grpc_port`` opens Serve's gRPC endpoint on the same host; ``max_body_bytes`` is as for `prepare`.

    A joined cluster lives on, without our application. Raises `ClusterError`, also at the end where the
    cluster does not answer any more.
    """
    if address is None:
        _check_ports(host, port, grpc_port)
    folder = Path(tempfile.mkdtemp(prefix="hybrid-router-"))
    try:
        prepare(folder, max_body_bytes, [port, grpc_port or 0])
        with _ray(address) as started:
            from ray import serve

            if address is None or not _serve_runs(host, port, grpc_port):
                if address is not None:
                    _check_ports(host, port, grpc_port)
                _start_serve(host, port, grpc_port)
            try:
                yield started
            finally:
                if started.own:
                    within_bounds(serve.shutdown)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def within_bounds(stop: Callable[[], object]) -> None:
    """Let something of Ray's end in order, for a while: whatever is left goes with the cluster.

    A call to a cluster that has died hangs for a minute, in code that sees no signal. So it has a thread of
    its own, and the main thread stays there for signals.
    """

    def run() -> None:
        with suppress(Exception):
            stop()

    stopping = threading.Thread(target=run, daemon=True)
    stopping.start()
    stopping.join(_STOP_WITHIN_S)
    if stopping.is_alive():
        _abandoned.append(stopping)


def hangs() -> bool:
    """Whether a call to Ray still has not come back. Ray's own exit handlers would wait for it as well."""
    return any(thread.is_alive() for thread in _abandoned)


def _check_ports(host: str, port: int, grpc_port: int | None) -> None:
    """Raise `ClusterError` where something listens on either of them."""
    for option, wanted in (("--port", port), ("--grpc-port", grpc_port)):
        try:
            check_port(host, wanted or 0)
        except OSError as error:
            raise ClusterError(
                f"cannot listen on {host}:{wanted}: {error.strerror}; "
                f"stop what listens there or choose {option}"
            ) from None


def _start_serve(host: str, port: int, grpc_port: int | None) -> None:
    from ray import serve
    from ray.serve.config import HTTPOptions, gRPCOptions
    from ray.serve.schema import LoggingConfig

    from router.ingress.grpc.server import SERVICER

    serve.start(
        proxy_location="HeadOnly",
        http_options=HTTPOptions(host=host, port=port),
        # Reflection is the servicer's own: Serve's looks in protobuf's shared pool only.
        grpc_options=gRPCOptions(
            port=grpc_port or 0,
            grpc_servicer_functions=[SERVICER] if grpc_port else [],
            enable_reflection=False,
        ),
        logging_config=LoggingConfig(enable_access_log=False),
    )


def _serve_runs(host: str, port: int, grpc_port: int | None) -> bool:
    """Whether a joined Ray runs Serve already. Raises `ClusterError` where that listens elsewhere.

    Serve keeps the ports that it was started with, whatever comes later, and outlives its applications.
    """
    from router.ingress.grpc.server import SERVICER
    from router.online.ray_internals import serve_options

    options = serve_options()
    if options is None:
        return False
    http, grpc = options
    there = grpc.port if SERVICER in grpc.grpc_servicer_functions else None
    if (http.host, http.port, there) != (host, port, grpc_port):
        raise ClusterError(
            f"Serve runs in this Ray already, on {http.host}:{http.port} and "
            f"{f'gRPC port {there}' if there else 'without this gRPC'}; say --host {http.host} "
            f"--port {http.port} --grpc-port {there or 0}, or end it first (`serve shutdown`)"
        )
    return True


@contextmanager
def _ray(address: str | None) -> Iterator[Started]:
    if address:
        # Ray reads it while it is imported. A Ray that asks for no token takes one as well.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    try:
        with _signals_kept():
            context: Any = ray.init(
                address=address or "local",
                include_dashboard=None if address else True,
                log_to_driver=False,
                configure_logging=False,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"join the Ray at {address}" if address else "start Ray"
        raise ClusterError(f"cannot {where}: {error}") from None
    try:
        url = context.dashboard_url
        yield Started(f"http://{url}" if url else None, _metrics_url(address is None), address is None)
    finally:
        shutdown: Any = ray.shutdown
        if address is None or not hangs():
            within_bounds(shutdown)
        if address is not None and hangs():
            raise ClusterError(f"the Ray at {address} does not answer any more: it was left as it is")


def _metrics_url(own: bool) -> str | None:
    """Where Ray's Prometheus endpoint of the first living node is; on loopback where it is this machine."""
    import ray

    nodes: Any = ray.nodes
    for node in nodes():
        if node["Alive"] and node.get("MetricsExportPort"):
            host = "127.0.0.1" if own else node["NodeManagerAddress"]
            return f"http://{host}:{node['MetricsExportPort']}/metrics"
    return None


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts its own SIGTERM handler in place of ours, which would end the process without a word."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    if threading.current_thread() is threading.main_thread():
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
