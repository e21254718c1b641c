"""The report: metrics of every experiment beside the paper's numbers, as tables, figures and REPORT.md."""
