"""`python -m resurgence.cli`, the same as the command `resurgence`."""

import sys

from resurgence.cli.main import main

sys.exit(main())
