"""The evaluation report: figures, plots and the HTML page."""
