"""Folders of images, pairs, renders, phantoms, and the sets to score on."""
