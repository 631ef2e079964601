"""The plug-ins of this package, one module for each."""
