"""A switch in user space, for networks that lose and delay: this kernel may have no netem.

It makes tap devices tap0 (the harness) to tapN, says `ready`, and forwards frames between them by
destination. A JSON object a line on standard input sets loss (0 to 1), delay and jitter (ms). They
hold between nodes only; frames of one direction of a pair keep their order, as on a real path. It
ends with its standard input.
"""

from __future__ import annotations

import fcntl
import heapq
import json
import os
import random
import selectors
import struct
import subprocess
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
FRAME_BYTES_MAX = 65_600
FRAMES_WAITING_MAX = 20_000  # what comes beyond is lost, as in any switch
BURST = 64


class Switch:
    """Forwards frames between its ports. Frames from or to port 0 are never disturbed."""

    def __init__(self, ports: list[int], macs: list[bytes]) -> None:
        self._ports = ports
        self._at = {mac: index for index, mac in enumerate(macs)}
        self._waiting: list[tuple[float, int, int, bytes]] = []  # due, sequence, port, frame
        self._last_due: dict[tuple[int, int], float] = {}
        self._sequence = 0
        self._rng = random.Random(1)
        self.loss, self.delay_ms, self.jitter_ms = 0.0, 0.0, 0.0

    def run(self) -> None:
        selector = selectors.DefaultSelector()
        for index, port in enumerate(self._ports):
            selector.register(port, selectors.EVENT_READ, index)
        selector.register(sys.stdin.buffer, selectors.EVENT_READ, None)
        os.set_blocking(sys.stdin.fileno(), False)
        while True:
            left_s = self._waiting[0][0] - time.monotonic() if self._waiting else None
            for key, _ in selector.select(None if left_s is None else max(0.0, left_s)):
                if key.data is None:
                    line = sys.stdin.buffer.readline()
                    if not line:
                        return
                    self._obey(json.loads(line))
                else:
                    self._read(key.data)
            self._deliver()

    def _obey(self, wish: dict[str, float]) -> None:
        self.loss, self.delay_ms = wish["loss"], wish["delay_ms"]
        self.jitter_ms = wish["jitter_ms"]

    def _read(self, source: int) -> None:
        for _ in range(BURST):
            try:
                frame = os.read(self._ports[source], FRAME_BYTES_MAX)
            except BlockingIOError:
                return
            target = self._at.get(frame[:6])
            targets = range(len(self._ports)) if target is None else (target,)
            for one in targets:
                if one != source:
                    self._forward(source, one, frame)

    def _forward(self, source: int, target: int, frame: bytes) -> None:
        if source == 0 or target == 0 or not (self.loss or self.delay_ms):
            self._write(target, frame)
            return
        if self._rng.random() < self.loss or len(self._waiting) >= FRAMES_WAITING_MAX:
            return
        wait_ms = self.delay_ms + self._rng.uniform(-self.jitter_ms, self.jitter_ms)
        due = time.monotonic() + wait_ms / 1_000
        due = max(due, self._last_due.get((source, target), 0.0))
        self._last_due[source, target] = due
        self._sequence += 1
        heapq.heappush(self._waiting, (due, self._sequence, target, frame))

    def _deliver(self) -> None:
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            _, _, target, frame = heapq.heappop(self._waiting)
            self._write(target, frame)

    def _write(self, target: int, frame: bytes) -> None:
        try:
            os.write(self._ports[target], frame)
        except OSError:
            return  # the device is down or full: a lost frame


def open_tap(name: str, mac: bytes) -> int:
    port = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(port, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    address = mac.hex(":")
    subprocess.run(["ip", "link", "set", name, "address", address], check=True, timeout=10)
    return port


def main() -> int:
    node_count = int(sys.argv[1])
    macs = [bytes([2, 0, 0, 0, 0, number]) for number in range(node_count + 1)]
    try:
        ports = [open_tap(f"tap{number}", mac) for number, mac in enumerate(macs)]
    except OSError as error:
        print(f"no taps: {error}", flush=True)
        return 1
    print("ready", flush=True)
    Switch(ports, macs).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
