"""Installing, listing and removing the packages of plug-ins."""
