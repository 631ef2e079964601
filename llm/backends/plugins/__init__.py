"""The built-in backends. Each is written as a third party would write it."""
