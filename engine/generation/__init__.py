"""The plan of a synthetic set, the gate, and the actors that draw it."""
