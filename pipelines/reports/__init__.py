"""HTML reports: one builder of pages, and what several jobs show."""
