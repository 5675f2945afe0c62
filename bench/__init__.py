"""What the engine costs: `make bench` compares it with the published algorithm and with the machine's limits."""

import lib  # noqa: F401  before torch: OpenMP reads lib's setting when torch loads it
