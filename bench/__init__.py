"""What the engine costs: `make bench` compares it with the published algorithm and with the machine's limits."""
