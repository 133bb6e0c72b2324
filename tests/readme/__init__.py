"""What README.md tells people to type, taken from README.md itself.

`python -m tests.readme` types it all in a fresh clone and a fresh virtual environment.
"""
