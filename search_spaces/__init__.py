"""The built-in search spaces; each is a plug-in like any other."""
