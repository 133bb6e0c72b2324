"""From encoded files to pixels: Pillow, libjpeg-turbo, nvJPEG."""
