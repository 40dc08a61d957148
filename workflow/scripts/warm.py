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
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def open_files(without: int) -> list[int]:
    """Numbers of the open files of this process."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one of the listing is closed by now
            os.fstat(int(name))
            found.append(int(name))
    return sorted(set(found) - {without})


def begin(server: socket.socket, words: list[str]) -> bool:
    """Hand the job over; whether the server has begun it."""
    try:
        server.connect(SOCKET)
        files = open_files(server.fileno())
        job = json.dumps({"words": words, "environment": dict(os.environ), "files": files}).encode()
        socket.send_fds(server, [len(job).to_bytes(8, "big")], files)
        server.sendall(job)
        return server.recv(1) == b"+"
    except OSError:
        return False


def main() -> None:
    """Run the job and end as it ends."""
    words = sys.argv[1:]
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if not begin(server, words):
        os.execvp("python", ["python", *words])

    def pass_on(number: int, _: object) -> None:
        with contextlib.suppress(OSError):
            server.send(bytes([number]))

    for number in PASSED_ON:
        signal.signal(number, pass_on)
    told = b"".join(iter(lambda: server.recv(16), b""))
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
