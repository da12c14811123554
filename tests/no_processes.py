"""Execute a command in a sandbox (seccomp) in which threads may be started, but no processes.

``no_processes.py COMMAND…``; for x86-64.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys

_LOAD, _JUMP_IF_EQUAL, _JUMP_IF_ANY, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _ERROR = 0x7FFF0000, 0x00050000
_CLONE, _FORK, _VFORK, _CLONE3 = 56, 57, 58, 435
_CLONE_THREAD = 0x10000
_NUMBER_AT, _FIRST_ARGUMENT_AT = 0, 16
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2

PROGRAM = [
    (_LOAD, 0, 0, _NUMBER_AT),
    (_JUMP_IF_EQUAL, 6, 0, _CLONE3),  # without it libc takes clone
    (_JUMP_IF_EQUAL, 4, 0, _FORK),
    (_JUMP_IF_EQUAL, 3, 0, _VFORK),
    (_JUMP_IF_EQUAL, 0, 4, _CLONE),
    (_LOAD, 0, 0, _FIRST_ARGUMENT_AT),
    (_JUMP_IF_ANY, 2, 0, _CLONE_THREAD),
    (_RETURN, 0, 0, _ERROR | errno.EPERM),
    (_RETURN, 0, 0, _ERROR | errno.ENOSYS),
    (_RETURN, 0, 0, _ALLOW),
]


def main() -> None:
    code = b"".join(struct.pack("=HBBI", *line) for line in PROGRAM)
    held = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(PROGRAM), ctypes.addressof(held))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or prctl(_PR_SET_SECCOMP, _FILTER, program, 0, 0):
        raise OSError(ctypes.get_errno(), "no seccomp here")
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
