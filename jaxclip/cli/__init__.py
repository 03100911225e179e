"""The command line: `jaxclip advise` and `jaxclip sweep`."""
