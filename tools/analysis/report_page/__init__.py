"""The parts of the page that ``tools/analysis/report.py`` writes, each in a module; template, style and script beside."""
