"""Students that other libraries build: `timm/NAME` and `torchvision/NAME`.

`timm.py` and `torchvision.py` say how a network is built and read, `sizes.py` what it gives, found on
the meta device; `backbone.py` is the student, `masked.py` the one whose patches are masked.
"""
