"""Records to pages: terminal, Markdown, HTML, JSON and CSV. Knows nothing of engines."""
