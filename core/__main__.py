"""The `stagewatch` command, also as ``python -m stagewatch``.

``stagewatch run`` goes its own way: what stays beside the user's command has no use for a parser.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Run one command; returns its exit status."""
    if sys.argv[1:2] == ["run"] and sys.argv[2:3] not in (["-h"], ["--help"]):
        from stagewatch import launch

        return launch.main(sys.argv[2:])
    from stagewatch import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
