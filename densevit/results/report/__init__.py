"""The report of a sweep as HTML and Markdown."""
