"""Views of stores as volumes of containers: the volume plugin of Docker and Podman.

``options`` (what a volume is; pure), ``ledger`` (which there are and who uses them, durably),
``mounts`` (mounts as processes of their own), ``workers`` (who makes them), ``driver`` (what the
plugin does) and ``server`` (how it is asked). Knows no FUSE and no command line.
Specified in docs/cli.md, "volume-plugin".
"""
