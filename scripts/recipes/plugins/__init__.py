"""The built-in recipes. Each is written as a third party would write it."""
