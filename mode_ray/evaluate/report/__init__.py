"""The evaluation report: numbers, plots and the HTML page."""
