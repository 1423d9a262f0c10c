"""The FUSE adapter: the only place that knows pyfuse3 and trio.

``mountpoints.py`` knows neither, so that commands work where there is no FUSE.
"""
