"""From finished runs to answers: collect -> tables, figures -> report."""
