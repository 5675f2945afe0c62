"""`python -m lib.collect outputs/<run>/params.yaml`, alone or under torchrun."""

import sys

from lib.collect.one_pass import main

sys.exit(main())
