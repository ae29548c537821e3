"""The launchers: each executes planned runs and changes nothing about them."""
