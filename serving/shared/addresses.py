"""Addresses as servers are told them and as clients write them."""

import socket

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def host_port(host: str, port: int) -> str:
    """host:port, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def from_here(host: str) -> str:
    """How this machine reaches a server of its own that listens at `host`."""
    return _EVERYWHERE.get(host, host)


def listen(host: str, port: int, protocol: str) -> socket.socket:
    """A socket that listens there; port 0 is any free one.

    Raises:
      OSError: the port cannot be had; its text says for which protocol.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        address = host_port(host, port)
        raise OSError(f"cannot listen on {address} for {protocol}; choose another port: {error}") from error
