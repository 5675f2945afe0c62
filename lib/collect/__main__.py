"""`python -m lib.collect outputs/<run>/params.yaml`, alone or under torchrun."""

import sys

from lib.collect.passes import main

sys.exit(main())
