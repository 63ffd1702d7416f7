"""The parts of the page that ``tools/analysis/report.py`` writes; its template, style and script lie beside them."""
