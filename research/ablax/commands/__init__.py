"""One thin module per command: flags in, a library call, text out. Imported only when the command is called."""
