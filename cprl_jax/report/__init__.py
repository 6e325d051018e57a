"""Tables, sections, figures and one self-contained HTML page from plain rows. It shows numbers and computes none."""
