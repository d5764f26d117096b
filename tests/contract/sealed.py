"""Commands in a machine without a network, where every packet that they try to send is seen.

``run_sealed`` starts this file as a program in fresh network and mount namespaces of Linux. There
every address of the world leads to the loopback device, on which a packet socket listens, and a
name server of our own answers every question. So a program that reaches out gets as far as it can
(its name is looked up, its connection is tried), and everything that it sends is written down.
Each command gets an empty home, and what it leaves there and in the folder for temporary files is
listed.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# An address that the world has given to nobody (TEST-NET-3 of RFC 5737).
SOMEWHERE = "203.0.113.9"
_NAME_SERVER = "198.51.100.53"
_ALL_PROTOCOLS = 3
_SETTLE_S = 0.2
_URL = re.compile(r"at (http://\S+)")


@dataclass(frozen=True)
class Command:
    """What to run.

    Attributes:
        name: For the message.
        argv: The command line; ``{url}`` stands for the address of ``server``.
        server: Command line of a server that runs meanwhile and says its address on stderr.
        limit_s: After this long the command is asked to end, as by SIGTERM.
        variables: Added to its environment.
    """

    name: str
    argv: Sequence[str]
    server: Sequence[str] = ()
    limit_s: float = 300.0
    variables: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """What a command did.

    Attributes:
        name: The command's.
        code: Its exit code.
        out: What it wrote to stdout.
        said: The end of what it wrote to stderr.
        packets: What it sent to other machines, and questions to a name server: one text each.
        files: What it left in its home and in the folder for temporary files.
    """

    name: str
    code: int
    out: str
    said: str
    packets: tuple[str, ...]
    files: tuple[str, ...]


def why_not() -> str | None:
    """Say why nothing can be sealed on this machine; None where it can."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return "it needs Linux and the program unshare"
    done = subprocess.run(
        [*_unshare(), sys.executable, __file__, "--try"], capture_output=True, text=True, timeout=60
    )
    said = done.stderr.strip().splitlines()
    return (
        f"no namespaces here: {said[-1] if said else done.returncode}" if done.returncode else None
    )


def run_sealed(commands: Sequence[Command], *, cwd: Path, pythonpath: str) -> list[Seen]:
    """Run commands one after the other, each with an empty home."""
    with tempfile.TemporaryDirectory() as scratch:
        plan = Path(scratch) / "plan.json"
        given = {
            "commands": [vars(command) for command in commands],
            "cwd": str(cwd),
            "pythonpath": pythonpath,
        }
        plan.write_text(json.dumps(given), encoding="utf-8")
        done = subprocess.run(
            [*_unshare(), sys.executable, __file__, str(plan)], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
    return [
        Seen(**{**seen, "packets": tuple(seen["packets"]), "files": tuple(seen["files"])})
        for seen in json.loads(done.stdout)
    ]


def _unshare() -> list[str]:
    as_root = [] if os.geteuid() == 0 else ["--map-root-user"]
    return ["unshare", "--net", "--mount", *as_root]


class _Watch:
    """The packets that cross the loopback device, which is the only one."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._socket = socket.socket(
            socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ALL_PROTOCOLS)
        )
        threading.Thread(target=self._listen, daemon=True).start()
        for family in (socket.AF_INET, socket.AF_INET6):
            # The family of IPv6 is missing where the kernel was told to do without.
            with contextlib.suppress(OSError):
                server = socket.socket(family, socket.SOCK_DGRAM)
                if family == socket.AF_INET6:
                    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                server.bind(("" if family == socket.AF_INET else "::", 53))
                threading.Thread(target=_answer_names, args=(server,), daemon=True).start()

    def take(self) -> tuple[str, ...]:
        """Give what was seen since the last call, each once."""
        time.sleep(_SETTLE_S)
        taken, self.seen = self.seen, []
        return tuple(dict.fromkeys(taken))

    def _listen(self) -> None:
        while True:
            data, where = self._socket.recvfrom(65_536)
            text = _describe(data)
            if where[2] != socket.PACKET_OUTGOING and text is not None:
                self.seen.append(text)


def _describe(data: bytes) -> str | None:
    """Say what a packet is; None for one that stays on this machine, and for answers."""
    if data[0] >> 4 == 4:
        protocol, start = data[9], (data[0] & 15) * 4
        target = ipaddress.ip_address(data[16:20])
    else:
        protocol, start = data[6], 40
        target = ipaddress.ip_address(data[24:40])
    ports = data[start : start + 4]
    from_port, port = struct.unpack(">HH", ports) if len(ports) == 4 else (0, 0)
    if 53 in (port, from_port) and protocol in (socket.IPPROTO_UDP, socket.IPPROTO_TCP):
        if port != 53:
            return None
        name = _asked_name(data[start + 8 :]) if protocol == socket.IPPROTO_UDP else ""
        return f"name server asked for {name or 'something'}"
    if target.is_loopback or (target.version == 6 and target.is_multicast):
        return None  # the kernel itself greets its IPv6 neighbours
    if protocol == socket.IPPROTO_TCP:
        flags = data[start + 13]
        return f"connection to {target} port {port}" if flags & 0x12 == 0x02 else None
    if protocol == socket.IPPROTO_ICMP or protocol == socket.IPPROTO_ICMPV6:
        return None  # the kernel's own word that nobody listens on a port
    return f"packet of protocol {protocol} to {target} port {port}"


def _asked_name(question: bytes) -> str:
    labels, at = [], 12
    while at < len(question) and (size := question[at]):
        labels.append(question[at + 1 : at + 1 + size].decode("ascii", "replace"))
        at += 1 + size
    return ".".join(labels)


def _answer_names(server: socket.socket) -> None:
    """Answer every question for an IPv4 address with ``SOMEWHERE``, every other with nothing."""
    while True:
        question, client = server.recvfrom(4096)
        end = question.index(b"\0", 12) + 5
        is_ipv4 = question[end - 4 : end - 2] == b"\0\1"
        answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton(SOMEWHERE) if is_ipv4 else b""
        header = question[:2] + b"\x81\x80\0\1" + (b"\0\1" if is_ipv4 else b"\0\0") + b"\0\0\0\0"
        server.sendto(header + question[12:end] + answer, client)


def _seal() -> None:
    """Lead every address to the loopback device, and questions for names to our name server."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        up = struct.pack("16sH14x", b"lo", 0x1 | 0x40)  # IFF_UP, IFF_RUNNING
        fcntl.ioctl(any_socket, 0x8914, up)  # SIOCSIFFLAGS
    _route_all_here(socket.AF_INET)
    with contextlib.suppress(OSError):
        _route_all_here(socket.AF_INET6)
    files = {
        "/etc/resolv.conf": f"nameserver {_NAME_SERVER}\noptions timeout:1 attempts:1\n",
        # No resolver of the machine is asked by another way than the network.
        "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
    }
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(source: str, target: str, kind: str | None, flags: int) -> None:
        texts = [None if text is None else text.encode() for text in (source, target, kind)]
        if libc.mount(*texts, ctypes.c_ulong(flags), None) != 0:
            raise OSError(ctypes.get_errno(), f"mount on {target}")

    for target, text in files.items():
        if Path(target).exists():
            with tempfile.NamedTemporaryFile("w", delete=False) as stream:
                stream.write(text)
            mount(stream.name, str(Path(target).resolve()), None, 0x1000)  # MS_BIND
            Path(stream.name).unlink()
    for sockets in ("/run/nscd", "/run/systemd/resolve"):
        if Path(sockets).is_dir():
            mount("none", sockets, "tmpfs", 0)


def _route_all_here(family: int) -> None:
    """Say by rtnetlink that every address of a family is one of the loopback device."""
    loopback = struct.pack("HHI", 8, 4, socket.if_nametoindex("lo"))  # RTA_OIF
    scope = 254 if family == socket.AF_INET else 0  # RT_SCOPE_HOST
    # Table "local", made at boot, type "local".
    route = struct.pack("BBBBBBBBI", family, 0, 0, 0, 255, 4, scope, 2, 0) + loopback
    # RTM_NEWROUTE; request, acknowledge, create, only if it is new.
    header = struct.pack("IHHII", 16 + len(route), 24, 0x1 | 0x4 | 0x400 | 0x200, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.send(header + route)
        (code,) = struct.unpack_from("i", netlink.recv(4096), 16)
    if code:
        raise OSError(-code, "route to the loopback device")


def _run(command: dict[str, Any], plan: dict[str, Any], watch: _Watch) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        home, temporary = Path(scratch) / "home", Path(scratch) / "tmp"
        home.mkdir()
        temporary.mkdir()
        environment = {
            "HOME": str(home),
            "TMPDIR": str(temporary),
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "PYTHONPATH": plan["pythonpath"],
            "PYTHONDONTWRITEBYTECODE": "1",
        } | command["variables"]
        options: dict[str, Any] = {"cwd": plan["cwd"], "env": environment, "text": True}
        with _served(command["server"], options) as url:
            child = subprocess.Popen(
                [part.replace("{url}", url) for part in command["argv"]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                **options,
            )
            try:
                out, said = child.communicate(timeout=command["limit_s"])
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGTERM)
                out, said = child.communicate()
        files = [
            str(path.relative_to(scratch))
            for path in sorted(Path(scratch).rglob("*"))
            if not path.is_dir() or path.is_symlink()
        ]
        # Also a folder that holds nothing was made by somebody.
        files += [
            f"{path.relative_to(scratch)}/"
            for path in sorted(Path(scratch).rglob("*"))
            if path.is_dir() and path not in (home, temporary) and not any(path.iterdir())
        ]
    return {
        "name": command["name"],
        "code": child.returncode,
        "out": out,
        "said": said[-2000:],
        "packets": watch.take(),
        "files": files,
    }


@contextlib.contextmanager
def _served(argv: Sequence[str], options: dict[str, Any]) -> Iterator[str]:
    """Give the address of a server while the block runs; nothing without one."""
    if not argv:
        yield ""
        return
    with subprocess.Popen(list(argv), stderr=subprocess.PIPE, **options) as server:
        try:
            found = None
            while found is None:
                line = server.stderr.readline()
                if not line:
                    raise RuntimeError(f"{argv}: ended before it listened")
                found = _URL.search(line)
            # Its log must not fill the pipe.
            threading.Thread(target=server.stderr.read, daemon=True).start()
            yield found[1]
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()


def _main() -> None:
    _seal()
    watch = _Watch()
    if sys.argv[1] == "--try":
        return
    plan = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    json.dump([_run(command, plan, watch) for command in plan["commands"]], sys.stdout)


if __name__ == "__main__":
    _main()
