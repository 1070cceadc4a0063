"""Takes from this process what Linux has and macOS or Windows lack, so that tests find code that depends on it.

It stands in for the strictest of both systems: no `fork`, no locks by `fcntl`, few signals, no /proc, no folders that
can be opened, no links, no ":" in names of files. Nothing can be undone, so it belongs in a process of its own.
Packages that were imported before keep what they took from the system then.
"""
import ctypes
import errno
import multiprocessing.context
import os
import shutil
import signal
import sys

MODULES = ("fcntl", "resource", "termios", "tty", "pwd", "grp")
OF_OS = ("fork", "forkpty", "register_at_fork", "sched_getaffinity", "sched_setaffinity", "killpg", "setsid", "setpgid",
         "getpgid", "getpgrp", "getuid", "geteuid", "getgid", "getegid", "getloadavg", "sysconf", "statvfs", "uname",
         "mkfifo", "mknod", "nice", "sync", "wait3", "wait4", "pread", "pwrite", "posix_fadvise", "chown",
         "fchmod", "set_blocking", "memfd_create", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_SYNC")
OF_SIGNAL = ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGCHLD", "SIGPIPE", "SIGALRM", "SIGQUIT", "SIGSTOP",
             "SIGCONT", "sigwaitinfo", "sigwait", "sigtimedwait", "sigpending", "pthread_sigmask", "pthread_kill",
             "alarm", "setitimer", "siginterrupt")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class NamedLibrary(ctypes.CDLL):
    """`ctypes.CDLL`, which has no library without a name, as on Windows."""

    def __init__(self, name, *arguments, **options):
        if name is None:
            raise TypeError("bad argument type for built-in operation")
        super().__init__(name, *arguments, **options)


def refuse(event: str, arguments: tuple) -> None:
    """An audit hook: raises what the other systems raise for files that they do not have."""
    if event in ("open", "os.listdir", "os.scandir", "os.mkdir", "os.rename"):
        path = arguments[1 if event == "os.rename" else 0]
        path = os.fsdecode(path) if isinstance(path, (str, bytes, os.PathLike)) else ""
        if path.startswith(("/proc", "/sys", "/dev/shm")):
            raise FileNotFoundError(errno.ENOENT, "no such file here", path)
        if event == "open" and os.path.isdir(path):
            raise PermissionError(errno.EACCES, "a folder cannot be opened", path)
        writes = event in ("os.mkdir", "os.rename") or (event == "open" and (arguments[2] or 0) & WRITES)
        if writes and set(path) & set('<>:"|?*'):
            raise OSError(errno.EINVAL, "impossible name", path)
    elif event == "os.symlink":
        raise OSError(errno.EPERM, "a required privilege is not held by the client", arguments[1])


def become_another_system() -> None:
    """Hides everything above from the code that this process imports from now on."""
    for module in MODULES:
        sys.modules[module] = None   # type: ignore[assignment]
    for place, names in ((os, OF_OS), (signal, OF_SIGNAL)):
        for name in names:
            if hasattr(place, name):
                delattr(place, name)
    ctypes.CDLL = NamedLibrary   # type: ignore[misc]
    multiprocessing.context._concrete_contexts.pop("fork")
    shutil._use_fd_functions = False   # removing a tree opens folders elsewhere only
    sys.addaudithook(refuse)
