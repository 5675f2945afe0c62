"""What the engine costs, measured: `make bench` compares it with the published algorithm and with the machine's limits."""
