"""Faults of a kubelet, set from any thread."""

import threading
from dataclasses import dataclass


@dataclass
class _Fault:
    reason: str | None = None
    left: int | None = None
    delay: float = 0.0
    ignore: bool = False


class KubeletFaults:
    """Faults of a kubelet, in force until `clear`.

    `reading` is set while it reads the streams of its plugins.
    """

    def __init__(self) -> None:
        self.reading = threading.Event()
        self.reading.set()
        self._lock = threading.Lock()
        self._fault = _Fault()
        self._cleared = threading.Event()

    def refuse(self, reason: str, times: int | None = None) -> None:
        """Refuse so many registrations, or all."""
        self._change(_Fault(reason=reason, left=times))

    def delay(self, seconds: float) -> None:
        """Answer registrations so much later."""
        self._change(_Fault(delay=seconds))

    def ignore(self) -> None:
        """Accept registrations without connecting to the plugin."""
        self._change(_Fault(ignore=True))

    def stop_reading(self) -> None:
        """Read no further message of any stream."""
        self.reading.clear()

    def clear(self) -> None:
        """End every fault."""
        self._change(_Fault())
        self.reading.set()

    @property
    def ignores(self) -> bool:
        """Whether registrations are accepted without connecting to the plugin."""
        return self._fault.ignore

    def refusal(self) -> str | None:
        """Wait out the delay of a registration; return why it is refused, None where it is not."""
        with self._lock:
            fault, cleared = self._fault, self._cleared
        cleared.wait(fault.delay)
        with self._lock:
            if fault.left is None or fault.left > 0:
                fault.left = fault.left and fault.left - 1
                return fault.reason
            return None

    def _change(self, fault: _Fault) -> None:
        with self._lock:
            self._fault = fault
            self._cleared.set()
            self._cleared = threading.Event()
