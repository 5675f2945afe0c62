"""`python -m lib.report resolve|execute|render …`"""

import sys

from lib.report.steps import main

sys.exit(main())
