"""What may be decoded by default. Nothing here is slow to import."""

# Above the largest sensors of cameras and telephones (200 megapixels), below what only stitched
# pictures and bombs have. Decoding takes up to 12 bytes a pixel: 3 GB for the largest allowed.
MAX_MEGAPIXELS = 250.0

MAX_CHANNELS = 16
