"""Figures, gallery and the self-contained HTML report."""
