"""A folder for a paper: tables, figures, methods, hyperparameters and sources as LaTeX."""
