"""What job.sh runs in place of Python: have the warm server (resurgence.warm) fork the job, and wait for it.

    python -I -S workflow/scripts/warm.py -m MODULE ARGUMENTS...

The job gets this process's environment and open files, the locks of job.sh among them; signals are passed on to it, and
this process ends as the job ends. Where no server answers, it becomes the Python that it stands for.
"""

import contextlib
import json
import os
import signal
import socket
import sys

SOCKET = ".snakemake/warm"
PASSED_ON = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCONT,
)


def open_files(without: int) -> list[int]:
    """Numbers of the open files of this process."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one of the listing is closed by now
            os.fstat(int(name))
            found.append(int(name))
    return sorted(set(found) - {without})


def begin(server: socket.socket, words: list[str], ignored: list[int]) -> bool:
    """Hand the job over; whether the server has begun it."""
    told = {"words": words, "environment": dict(os.environ), "ignored": ignored}
    try:
        server.connect(SOCKET)
        files = open_files(server.fileno())
        job = json.dumps({**told, "files": files}).encode()
        socket.send_fds(server, [len(job).to_bytes(8, "big")], files)
        server.sendall(job)
        return server.recv(1) == b"+"
    except OSError:
        return False


def main() -> None:
    """Run the job and end as it ends."""
    words = sys.argv[1:]
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    ignored = [int(number) for number in PASSED_ON if signal.getsignal(number) == signal.SIG_IGN]  # as under nohup
    if not begin(server, words, ignored):
        os.execvp("python", ["python", *words])

    def pass_on(number: int, _: object) -> None:
        with contextlib.suppress(OSError):
            server.send(bytes([number]))

    def pause(*_: object) -> None:
        pass_on(signal.SIGSTOP, None)
        os.kill(os.getpid(), signal.SIGSTOP)

    for number in set(PASSED_ON) - set(ignored):
        signal.signal(number, pass_on)
    signal.signal(signal.SIGTSTP, pause)  # Control-Z
    told = b""
    with contextlib.suppress(OSError):  # the server has closed before it read the last signal
        while part := server.recv(16):
            told += part
    if not told:
        sys.exit("the server of warm starts has died, and its jobs with it (.snakemake/warm.log); run the study again")
    code = int(told)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main()
