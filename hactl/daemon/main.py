"""hactld: the way in.  What stays root comes in twice, and then loads little but the helper."""

from __future__ import annotations

import os
import sys

from hactl.daemon import helper


def main() -> None:
    """Run hactld as hactld(8) says."""
    _fill()
    if helper.TOLD in os.environ:
        sys.exit(helper.main(os.environ.pop(helper.TOLD)))
    from hactl.daemon import start

    sys.exit(start.main())


def _fill() -> None:
    """Let nothing of ours become standard input, output or error, where those are closed."""
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(null, True)
    os.close(null)


if __name__ == "__main__":
    main()
