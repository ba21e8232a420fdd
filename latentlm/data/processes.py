"""Worker processes that run one function and exchange messages over a pipe.

Place in the flow: 2, below the workers that encode and those that decode media. A worker is a new interpreter, so the
caller's main module is not imported again and needs no guard. It ends when the process that started it is gone.
"""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

from ..errors import UserError, notices_as_lines


class Worker:
    """A process that runs `module.function(connection, *arguments)`. Messages are pickled."""

    def __init__(self, target: str, *arguments: Any):
        """target: "module:function", such as "latentlm.data.encoding.workers:work"."""
        self.connection, theirs = Pipe()
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-m", "latentlm.data.processes", str(theirs.fileno())]
        self.process = subprocess.Popen(
            command, pass_fds=(theirs.fileno(),), env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
        theirs.close()
        self.send((target, arguments))

    def send(self, message: Any) -> None:
        """Send a message. Raises WorkerEnded if the process is gone."""
        try:
            self.connection.send(message)
        except BrokenPipeError:
            raise self.ended() from None

    def receive(self) -> Any:
        """The next message. Raises WorkerEnded if the process is gone."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            raise self.ended() from None

    def ended(self) -> WorkerEnded:
        """The error that says how the process ended; waits for the end."""
        code = self.process.wait()
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"
        return WorkerEnded(f"a worker process was ended by {how}")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        self.connection.close()


class WorkerEnded(UserError):
    """A worker process was killed, or ended by an error that it has printed to stderr."""


def main(descriptor: int) -> None:
    """Run one worker: the first message is (target, arguments). Ends silently when the caller is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the caller, which ends this process
    connection = Connection(descriptor)
    try:
        target, arguments = connection.recv()
        module, _, name = target.partition(":")
        with notices_as_lines():
            getattr(importlib.import_module(module), name)(connection, *arguments)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


if __name__ == "__main__":
    main(int(sys.argv[1]))
