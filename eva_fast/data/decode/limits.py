"""What may be decoded by default. Nothing here is slow to import."""

# Above the largest sensors of cameras and telephones (200 megapixels), below what only stitched
# pictures and bombs have. Pillow takes up to 8 bytes a pixel at once: 2 GB for the largest allowed.
MAX_MEGAPIXELS = 250.0
