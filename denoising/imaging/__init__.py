"""One image as an array: pixels, noise, metrics, k-space."""
