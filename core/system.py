"""Which system this is. Who asks says what is different there; nothing else here."""

import sys

LINUX = sys.platform == "linux"
"""Else macOS: psutil in place of /proc, and nothing that tells of another process's end."""
PEAK_UNIT = 1024 if LINUX else 1
"""Bytes in one of getrusage(2)'s ``ru_maxrss``."""
DESCRIPTORS = "/proc/self/fd" if LINUX else "/dev/fd"
"""Lists the open descriptors of who looks."""
