"""Installing, listing and removing the packages that bring plug-ins."""
