"""From finished runs to answers: collect, stats, tables, figures, compare, report."""
