"""The caller's side of a contender's process."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from typing import Any

from batchkit.errors import ConfigError, WorkerError

__all__ = ["Runner"]

_PROGRAM = (
    "import sys, json; sys.path[:] = json.loads(sys.argv.pop(1)); from batchkit.bench.contestant import main; main()"
)


class Runner:
    """A process that measures one contender: a new interpreter, in a session of its own."""

    def __init__(self) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by kill())
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the caller, who ends the whole session
        )
        self._replies: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._listener = threading.Thread(target=self._listen, name="batchkit-bench", daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as replies:
            for line in replies:
                self._replies.put(line)
        self._replies.put(None)

    def ask(self, request: str, timeout: float, **arguments: Any) -> dict[str, Any]:
        """Send a request and return the reply. After an error the process is gone.

        Raises:
            ConfigError: the config is not valid.
            WorkerError: it failed, died, or did not answer in ``timeout`` seconds; says which.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has died: that is what it has answered
            self._process.stdin.write(json.dumps({"request": request, **arguments}) + "\n")
            self._process.stdin.flush()
        try:
            line = self._replies.get(timeout=timeout)
        except queue.Empty:
            self.kill()
            raise WorkerError(f"hung: there was no answer for {timeout:g} s, and it was ended (--timeout)") from None
        if line is None:
            raise WorkerError(self._ending())
        reply: dict[str, Any] = json.loads(line)
        if "problem" in reply:
            self.kill()
            raise (ConfigError if reply["config"] else WorkerError)(reply["problem"])
        return reply

    def _ending(self) -> str:
        """Say how the process died, and what it said last."""
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = None
        self._errors.seek(0)
        said = self._errors.read().decode("utf-8", "replace").split("\n")
        last = next((line.strip() for line in reversed(said) if line.strip()), "")
        self.kill()
        if code is None:
            how = "stopped answering"
        else:
            how = f"was killed by {_signal(-code)}" if code < 0 else f"ended with exit code {code}"
        return f"its process {how}" + (f"; it said: {last}" if last else "")

    def end(self) -> None:
        """Let the process end by itself; it has five seconds for that."""
        if self._process.returncode is None:
            with contextlib.suppress(ConfigError, WorkerError):
                self.ask("close", timeout=5)
        self.kill()

    def kill(self) -> None:
        """End the process and all that it has started. May be called again."""
        if self._process.returncode is None:
            # Before it is waited for: until then nobody else can have its number.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if hasattr(os, "killpg"):
                    os.killpg(self._process.pid, signal.SIGKILL)
                else:
                    self._process.kill()
            self._process.wait()
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        self._listener.join(timeout=5)
        self._errors.close()


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
