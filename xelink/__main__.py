"""`python -m xelink`."""

import sys

from xelink.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
