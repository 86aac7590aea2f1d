"""What writes a model for the runtimes, in float or in 8 bits, and measures it."""
