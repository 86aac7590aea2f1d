"""Bytes in, bytes out: image files, weights, volumes, archives."""
