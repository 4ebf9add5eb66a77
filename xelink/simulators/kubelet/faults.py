"""How a kubelet misbehaves, on demand and from any thread."""

import threading
from dataclasses import dataclass


@dataclass
class _Mood:
    reason: str | None = None
    left: int | None = None
    delay: float = 0.0
    ignore: bool = False


class Behavior:
    """What a kubelet does wrong until `heal`.

    `reading` is set while it reads the streams of its plugins.
    """

    def __init__(self) -> None:
        self.reading = threading.Event()
        self.reading.set()
        self._lock = threading.Lock()
        self._mood = _Mood()
        self._healed = threading.Event()

    def refuse(self, reason: str, times: int | None = None) -> None:
        """Refuse so many registrations, or all."""
        self._change(_Mood(reason=reason, left=times))

    def delay(self, seconds: float) -> None:
        """Answer registrations so much later."""
        self._change(_Mood(delay=seconds))

    def ignore(self) -> None:
        """Accept registrations without dialing back."""
        self._change(_Mood(ignore=True))

    def stop_reading(self) -> None:
        """Read no further message of any stream."""
        self.reading.clear()

    def heal(self) -> None:
        """Behave again."""
        self._change(_Mood())
        self.reading.set()

    @property
    def ignores(self) -> bool:
        """Whether registrations are accepted without dialing back."""
        return self._mood.ignore

    def refusal(self) -> str | None:
        """Wait as long as a registration is to wait; then say why it is refused, if it is."""
        with self._lock:
            mood, healed = self._mood, self._healed
        healed.wait(mood.delay)
        with self._lock:
            if mood.left is None or mood.left > 0:
                mood.left = mood.left and mood.left - 1
                return mood.reason
            return None

    def _change(self, mood: _Mood) -> None:
        with self._lock:
            self._mood = mood
            self._healed.set()
            self._healed = threading.Event()
