"""What people look at: logs, plots, pages, pictures side by side."""
