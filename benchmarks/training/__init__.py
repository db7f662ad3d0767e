"""Training speed and loss beside other programs, and the ladder of sizes that measures compute multipliers."""
