"""Reports: records as terminal output, Markdown, HTML, JSON and CSV."""
