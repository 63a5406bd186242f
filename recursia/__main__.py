"""`python -m recursia VERB`."""

import sys

from recursia.cli import main

sys.exit(main())
