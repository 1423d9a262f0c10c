"""Each system call and each of its errors, on the machine's own file system and on mounts."""
