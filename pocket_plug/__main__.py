"""`python -m pocket_plug` is the command `pocket-plug`, for where the scripts of an environment aren't on PATH."""

import sys

from pocket_plug.cli import main

if __name__ == "__main__":
    sys.exit(main())
