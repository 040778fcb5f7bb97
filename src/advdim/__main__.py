"""Run the command line as ``python -m advdim``."""

import sys

from .cli import main

sys.exit(main())
