"""The same system calls on a native file system and on a mount."""
