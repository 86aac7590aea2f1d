"""Denoising over HTTP."""
