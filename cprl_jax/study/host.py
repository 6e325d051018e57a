"""Where the server listens: for observers, until it is stopped, or for this process, as long as it needs it."""

import contextlib
import ipaddress
import socket
import threading
import time
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette

from cprl_jax.runtime.errors import UserError


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections at once; port 0 is any free one. Raises UserError if it cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host={host} --port={port}: cannot listen there ({reason}); give others") from None


def address(listener: socket.socket) -> str:
    """http://HOST:PORT/."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


def is_loopback(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def is_any(listener: socket.socket) -> bool:
    """Whether it listens at all addresses of the machine, none of which its own address then tells."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_unspecified


def serve(app: Starlette, listener: socket.socket) -> None:
    """Serves until the process is stopped."""
    _server(app).run(sockets=[listener])


@contextlib.contextmanager
def in_background(app: Starlette) -> Iterator[str]:
    """Serves on a free port of this machine while the body runs; gives the address."""
    listener, server = listen("127.0.0.1", 0), _server(app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield address(listener)
    finally:
        server.should_exit = True
        thread.join()


def _server(app: Starlette) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=16 * 1024,  # of a request's head
    )
    return uvicorn.Server(config)
