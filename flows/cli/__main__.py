"""``python -m flows.cli``: the ``omnimri`` command."""

import sys

from flows.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
