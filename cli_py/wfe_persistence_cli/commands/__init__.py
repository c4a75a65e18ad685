"""The commands, a file each; see `program.COMMANDS`."""
