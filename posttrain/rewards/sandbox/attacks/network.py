"""Attacks through sockets: reaching something outside, or letting the outside reach in."""

from __future__ import annotations

from posttrain.rewards.sandbox.attacks.attack import Attack, attacks

NETWORK: tuple[Attack, ...] = attacks(
    "network",
    {
        "tcp_connect": """
import socket
socket.create_connection(("127.0.0.1", site["tcp"]), 2).send(b"x")
breach()
""",
        "tcp_connect_raw": """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
s.setblocking(False)
if s.connect_ex(("127.0.0.1", site["tcp"])) in (0, 115):
    import select
    if select.select([], [s], [], 2)[1] and s.getsockopt(1, 4) == 0: breach()
""",
        "http": """
import urllib.request
urllib.request.urlopen(f"http://127.0.0.1:{site['tcp']}/", timeout=1)
breach()
""",
        "tcp_listen": """
import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
s.listen()
breach()
""",
        "tcp_listen_all": """
import socket
s = socket.socket()
s.bind(("0.0.0.0", 0))
s.listen()
breach()
""",
        "tcp_fast_open": """
import socket
s = socket.socket()
try:
    s.sendto(b"x", 0x20000000, ("127.0.0.1", site["tcp"]))
except BlockingIOError:
    # Under way.
    pass
breach()
""",
        "udp_send": """
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", site["udp"]))
breach()
""",
        "udp_connect": """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect(("127.0.0.1", site["udp"]))
s.send(b"x")
breach()
""",
        "udp_bind": """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("127.0.0.1", 0))
breach()
""",
        "unix_connect": """
import socket
s = socket.socket(socket.AF_UNIX)
s.connect(site["unix"])
breach()
""",
        "unix_datagram": """
import socket
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.sendto(b"x", site["unix_datagram"])
breach()
""",
        "unix_pair": """
import socket
pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
pair[0].sendto(b"x", site["unix_datagram"])
breach()
""",
        "unix_abstract": """
import socket
s = socket.socket(socket.AF_UNIX)
s.connect("\\0" + site["abstract"])
breach()
""",
        "netlink": """
import socket, struct
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
s.settimeout(1)
s.send(struct.pack("IHHII", 32, 18, 0x301, 1, 0) + bytes(16))
# Interfaces other than lo: those of the host.
if any(name.encode() in s.recv(65536) for name in site["interfaces"]): breach()
""",
        "packet_socket": """
import socket
socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
breach()
""",
        "raw_socket": """
import socket
socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
breach()
""",
    },
)
