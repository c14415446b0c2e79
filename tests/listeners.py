"""Which TCP ports the processes below one listen on, and on which addresses."""

from ipaddress import IPv6Address, ip_address
from typing import NamedTuple

import psutil


class Listener(NamedTuple):
    process: str
    address: str
    port: int

    @property
    def is_loopback(self) -> bool:
        found = ip_address(self.address)
        # A socket for both protocols shows 127.0.0.1 as ::ffff:127.0.0.1.
        return ((isinstance(found, IPv6Address) and found.ipv4_mapped) or found).is_loopback


def listeners_below(pid: int) -> list[Listener]:
    """The listening TCP sockets of a process and its descendants."""
    root = psutil.Process(pid)
    return [
        Listener(process.name(), connection.laddr.ip, connection.laddr.port)
        for process in (root, *root.children(recursive=True))
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
