"""Warm starts: one process imports the libraries once, and every job of a run is a fork of it.

On a CPU a job of the miniature spends about as long on importing torch, diffusers and peft as on its work. So the
Snakemake that runs jobs on this machine starts a server; job.sh has it fork each job (workflow/scripts/warm.py). The
fork gets environment, open files and arguments of the command and runs the module as `python -m` does, and reads the
sources of this package anew: the server imports libraries only, with the first job. The server ends with Snakemake,
and what it still runs is asked to save its state and leave.

Not with a GPU: a library that has looked for one in the server would spoil it for the forks. Its jobs take minutes, not
seconds. RESURGENCE_WARM=0 turns it off.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

SOCKET = Path(".snakemake/warm")  # short, relative: the path of a socket may have 108 bytes
# what the stages of a study on a CPU import, and what diffusers and transformers would import later on
LIBRARIES = {
    "torch": (),
    "pandas": (),
    "pyarrow.parquet": (),
    "safetensors.torch": (),
    "transformers": ("CLIPModel", "CLIPTextModel", "CLIPTokenizer"),
    "diffusers": ("AutoencoderKL", "DDIMScheduler", "StableDiffusionPipeline", "UNet2DConditionModel"),
    "peft": (),
    "torchmetrics": (),
    "torchvision.transforms.functional": (),
    "scipy.stats": (),
}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # read when libraries are loaded
MOST_FILES = 64  # of a client
PATIENCE = 10.0  # seconds that a client may take to say what it wants
HIGH = 512  # file numbers below are free for the job
PR_SET_PDEATHSIG = 1

_held: list[subprocess.Popen] = []


@dataclass(frozen=True)
class Job:
    """A command that a client has handed over."""

    words: list[str]  # -m MODULE ARGUMENTS...
    environment: dict[str, str]
    files: list[int]  # numbers that the received files have in the client
    ignored: list[int]  # signals that the client ignores, as under nohup
    received: list[int] = field(repr=False)


def start(pythonpath: str, threads: int) -> None:
    """Start the server of this Snakemake, which lives as long as Snakemake does; nothing where forks cannot be watched.

    Args:
        pythonpath: of the jobs. threads: of each job.
    """
    if os.environ.get("RESURGENCE_WARM") == "0" or not can_watch():
        return
    SOCKET.parent.mkdir(exist_ok=True)
    SOCKET.unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONPATH": pythonpath, **dict.fromkeys(THREADS, str(threads))}
    with open(SOCKET.with_suffix(".log"), "w") as log:
        told = {"stdin": subprocess.PIPE, "stdout": log, "stderr": log}
        command = [sys.executable, "-m", "resurgence.warm"]
        # a session of its own: Control-C reaches jobs through their clients, and the server not at all
        _held.append(subprocess.Popen(command, **told, env=environment, start_new_session=True))


def stop() -> None:
    """End the server and take its socket away: whoever copies the folder could not copy that."""
    while _held:
        process = _held.pop()
        process.kill()  # no job runs any more
        process.wait()
        process.stdin.close()
        SOCKET.unlink(missing_ok=True)


def can_watch() -> bool:
    """Whether this system tells of the end of a process by a file."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


def receive(client: socket.socket) -> Job:
    """Read a command and its open files.

    Raises:
        OSError, ValueError: the client has gone, stalls, or has more files than one message carries.
    """
    client.settimeout(PATIENCE)
    head, received, _, _ = socket.recv_fds(client, 8, MOST_FILES)
    try:
        size, body = int.from_bytes(head, "big"), b""
        while len(body) < size:
            if not (part := client.recv(size - len(body))):
                raise ConnectionError("the client has gone")
            body += part
        job = Job(**json.loads(body), received=received)
        if not job.words or len(job.files) != len(received):
            raise ValueError(f"{len(received)} of {len(job.files)} files came")
    except (OSError, ValueError, TypeError):
        for file in received:
            os.close(file)
        raise
    client.settimeout(None)
    return job


def import_libraries() -> None:
    """Import what the jobs would import; a library that is missing is missed by the job that needs it."""
    for name, lazy in LIBRARIES.items():
        try:
            module = importlib.import_module(name)
            for part in lazy:
                getattr(module, part)
        except Exception as error:
            print(f"{name} is not imported beforehand: {error}", file=sys.stderr, flush=True)


def become(job: Job, server: int) -> None:
    """Make this fork the process that the client stands for: its files, environment, signals, threads."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # a job without its server is one nobody waits for
    if os.getppid() != server:
        sys.exit("the server of warm starts has ended")
    moved = [fcntl.fcntl(file, fcntl.F_DUPFD, HIGH) for file in job.received]
    os.closerange(0, HIGH)
    for number, file in zip(job.files, moved, strict=True):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(job.environment)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in job.ignored:
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(job.words[1].rpartition(".")[2])  # what `top` shows
    if "torch" in sys.modules and (threads := job.environment.get("OMP_NUM_THREADS")):
        sys.modules["torch"].set_num_threads(int(threads))


class Server:
    """The process that forks. It starts no threads and looks at no device: forks could not use what they inherit."""

    def __init__(self) -> None:
        self.waiting = selectors.PollSelector()  # no epoll, which forks would share
        self.running: dict[socket.socket, int] = {}  # client -> process
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def serve(self) -> Job | None:
        """Answer clients until standard input ends; returns None then, and in a fork its job."""
        before = os.umask(0o077)
        self.listener.bind(str(SOCKET))
        os.umask(before)
        self.listener.listen(1024)
        made = SOCKET.stat().st_ino
        self.waiting.register(0, selectors.EVENT_READ, lambda: None)
        self.waiting.register(self.listener, selectors.EVENT_READ, lambda: self.begin(self.listener.accept()[0]))
        while True:
            for key, _ in self.waiting.select():
                if key.fileobj == 0:  # Snakemake was killed
                    if SOCKET.exists() and SOCKET.stat().st_ino == made:  # no other server's
                        SOCKET.unlink()
                    return None
                if (job := key.data()) is not None:
                    return job

    def begin(self, client: socket.socket) -> Job | None:
        """Fork a job; returns it in the fork. Without a "+" the client starts Python itself."""
        try:
            job = receive(client)
        except (OSError, ValueError, TypeError) as error:
            return self.refuse(client, error)
        import_libraries()
        process = -1
        try:
            if (process := os.fork()) == 0:
                for one in (self.listener, client, *self.running):
                    one.detach()  # else their finalisers would close what the job opens under the same numbers
                return job
            watch = os.pidfd_open(process)
        except OSError as error:
            if process > 0:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
            return self.refuse(client, error)
        finally:
            if process != 0:
                for file in job.received:
                    os.close(file)
        self.running[client] = process
        self.waiting.register(client, selectors.EVENT_READ, lambda: self.hear(client))
        self.waiting.register(watch, selectors.EVENT_READ, lambda: self.end(client, watch))
        with contextlib.suppress(OSError):
            client.send(b"+")
        return None

    def refuse(self, client: socket.socket, error: Exception) -> None:
        """Let the client start Python itself; the other jobs go on."""
        print(f"a job was not begun: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        client.close()

    def hear(self, client: socket.socket) -> None:
        """Pass a signal on to the job; the end of its client asks it to save its state and leave."""
        try:
            told = client.recv(1)
        except OSError:
            told = b""
        if client in self.running:
            os.kill(self.running[client], told[0] if told else signal.SIGTERM)
            if not told:
                self.waiting.unregister(client)

    def end(self, client: socket.socket, watch: int) -> None:
        """Tell the client how its job has ended."""
        _, status = os.waitpid(self.running.pop(client), 0)
        self.waiting.unregister(watch)
        os.close(watch)
        with contextlib.suppress(KeyError):
            self.waiting.unregister(client)
        with contextlib.suppress(OSError):
            client.sendall(str(os.waitstatus_to_exitcode(status)).encode())
        client.close()


def main() -> None:
    """Serve, or in a fork run the job as `python -m` would."""
    server = os.getpid()
    job = Server().serve()
    if job is None:
        return
    become(job, server)
    sys.argv = job.words[1:]
    runpy.run_module(job.words[1], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
