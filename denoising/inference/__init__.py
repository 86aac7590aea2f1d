"""From weights to denoised images and their scores, on one device or several processes."""
