"""Run directories as tables of metrics, curves and costs."""
