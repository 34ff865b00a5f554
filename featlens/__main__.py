"""``python -m featlens``: the same as the command ``featlens``."""

import sys

from featlens.cli import main

if __name__ == "__main__":
    sys.exit(main())
