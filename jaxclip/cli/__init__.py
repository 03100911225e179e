"""The command line: `jaxclip advise`, `sweep`, `doctor` and `completion`."""
